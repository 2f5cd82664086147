"""Attempts to get out, each a small function that tries one thing and says whether it worked.

`run` is used by tests and by the check that a user can start: the same attempts outside and inside, compared by
`judge`. Nothing here changes what the caller did not make for the purpose: see `TARGETS`. An attempt leaves its process
as it was, but one that succeeds may still load libraries, so compare fresh processes.
"""
# The attempts are about single system calls, which pathlib wraps in others.
# ruff: noqa: PTH101, PTH102, PTH104, PTH106, PTH108, PTH116, PTH118, PTH208, PTH211

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import struct
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from enclaved.sandbox.tables import REFUSED_ERRNO, Machine, number_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

Targets = dict[str, "str | int"]

TARGETS: Final[Mapping[str, str]] = {
    "tcp4_port": "port of a listener on 127.0.0.1",
    "tcp6_port": "port of a listener on ::1",
    "udp4_port": "port of a datagram socket on 127.0.0.1",
    "udp6_port": "port of a datagram socket on ::1",
    "abstract_socket": "name of a listening abstract unix socket, without the leading NUL",
    "path_socket": "path of a listening unix socket",
    "home": "the user's home, or a folder standing for it",
    "home_file": "a readable file below it",
    "other_model": "a readable file that stands for another model",
    "model": "a file of the caller's own that it can read and write; keeps its content, mode and name, not its times",
    "expendable": "a file of the caller's own that may be truncated and removed",
    "program": "an empty file with mode 0755: running it fails with ENOEXEC, after every check of rights",
    "victim_pid": "a process of the same user that the caller started; nothing in it is changed",
    "temporary_folder": "a folder of the caller's own, in /tmp; what is made in it may stay",
    "shared_memory_folder": "the same in /dev/shm",
}

# Errors that come only after the kernel has agreed to try.
_TRIED: Final = frozenset({errno.ENOEXEC, errno.EFAULT, errno.EINPROGRESS, errno.ENOKEY})


@dataclass(frozen=True)
class Outcome:
    """What one attempt came to."""

    name: str
    tried: bool
    """False when a target is missing or this system lacks what it takes; `detail` says which."""
    allowed: bool
    errno_name: str | None = None
    detail: str = ""

    @property
    def by_filter(self) -> bool:
        """Whether the refusal can only have come from the child's own filter."""
        return not self.allowed and self.errno_name == errno.errorcode[REFUSED_ERRNO]

    def to_dict(self) -> dict[str, object]:
        """Plain values, for a message."""
        return {
            "name": self.name,
            "tried": self.tried,
            "allowed": self.allowed,
            "errno_name": self.errno_name,
            "detail": self.detail,
        }

    @staticmethod
    def from_dict(values: Mapping[str, object]) -> Outcome:
        """The other way. Raises KeyError when a field is missing."""
        errno_name = values["errno_name"]
        return Outcome(
            name=str(values["name"]),
            tried=bool(values["tried"]),
            allowed=bool(values["allowed"]),
            errno_name=None if errno_name is None else str(errno_name),
            detail=str(values["detail"]),
        )


Verdict = Literal["refused", "refused by the system anyway", "allowed", "open by design", "not tried"]


def judge(outside: Outcome, inside: Outcome) -> Verdict:
    """What the same attempt outside and inside proves.

    A refusal counts as the sandbox's when the attempt works outside, or when the error is one that only the filter
    gives; else it proves nothing, and is called so.
    """
    if outside.name != inside.name:
        raise ValueError(f"two different attempts: {outside.name} and {inside.name}")
    if not inside.tried:
        return "not tried"
    if inside.allowed:
        return "open by design" if inside.name in OPEN_BY_DESIGN else "allowed"
    return "refused" if inside.by_filter or (outside.tried and outside.allowed) else "refused by the system anyway"


class _NotHereError(Exception):
    """This system can't be asked: the attempt says nothing."""


Attempt = tuple[tuple[str, ...], "Callable[[Targets], str | None]"]
_ATTEMPTS: dict[str, Attempt] = {}


def _attempt(*needs: str) -> Callable[[Callable[[Targets], str | None]], Callable[[Targets], str | None]]:
    """Files a function under its own name. It returns when the attempt worked, with a word on it, and raises OSError
    when it was refused. `needs` are names in TARGETS."""

    def file(function: Callable[[Targets], str | None]) -> Callable[[Targets], str | None]:
        _ATTEMPTS[function.__name__] = (needs, function)
        return function

    return file


def names() -> tuple[str, ...]:
    """Every attempt, in an order in which none spoils the next."""
    return tuple(_ATTEMPTS)


def needs(name: str) -> tuple[str, ...]:
    """The targets of one attempt. Raises KeyError for an unknown one."""
    return _ATTEMPTS[name][0]


def run(names: Iterable[str], targets: Targets) -> list[Outcome]:
    """Makes the attempts, one after the other, in this process. Raises KeyError for an unknown name."""
    return [_run_one(name, targets) for name in names]


def _run_one(name: str, targets: Targets) -> Outcome:
    needed, function = _ATTEMPTS[name]
    if absent := [target for target in needed if target not in targets]:
        return Outcome(name, tried=False, allowed=False, detail=f"no {', '.join(absent)} given")
    try:
        detail = function(targets)
    except _NotHereError as reason:
        return Outcome(name, tried=False, allowed=False, detail=str(reason))
    except socket.gaierror as error:
        return Outcome(name, tried=True, allowed=False, errno_name="EAI", detail=str(error))
    except OSError as error:
        number = error.errno or 0
        errno_name = errno.errorcode.get(number, str(number))
        return Outcome(name, tried=True, allowed=number in _TRIED, errno_name=errno_name, detail=str(error))
    return Outcome(name, tried=True, allowed=True, detail=detail or "")


# ---- network ----


def _connected(family: int, kind: int, address: tuple[str, int] | str | bytes) -> None:
    with socket.socket(family, kind) as attempt:
        attempt.settimeout(5)
        attempt.connect(address)


def _need_v6() -> None:
    if not socket.has_ipv6:
        raise _NotHereError("no IPv6 here")


@_attempt("tcp4_port")
def connect_tcp4(targets: Targets) -> None:
    _connected(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", int(targets["tcp4_port"])))


@_attempt("tcp6_port")
def connect_tcp6(targets: Targets) -> None:
    _need_v6()
    _connected(socket.AF_INET6, socket.SOCK_STREAM, ("::1", int(targets["tcp6_port"])))


@_attempt()
def bind_tcp4(targets: Targets) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as attempt:
        attempt.bind(("127.0.0.1", 0))
        attempt.listen(1)


@_attempt("tcp6_port")
def bind_tcp6(targets: Targets) -> None:
    _need_v6()
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as attempt:
        attempt.bind(("::1", 0))
        attempt.listen(1)


@_attempt("udp4_port")
def send_udp4(targets: Targets) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as attempt:
        attempt.sendto(b"enclave", ("127.0.0.1", int(targets["udp4_port"])))


@_attempt("udp6_port")
def send_udp6(targets: Targets) -> None:
    _need_v6()
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as attempt:
        attempt.sendto(b"enclave", ("::1", int(targets["udp6_port"])))


@_attempt()
def netlink(targets: Targets) -> None:
    socket.socket(_constant(socket, "AF_NETLINK"), socket.SOCK_RAW, 0).close()


@_attempt()
def raw_socket(targets: Targets) -> None:
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()


@_attempt()
def packet_socket(targets: Targets) -> None:
    socket.socket(_constant(socket, "AF_PACKET"), socket.SOCK_RAW, 0).close()


@_attempt()
def vsock(targets: Targets) -> None:
    socket.socket(_constant(socket, "AF_VSOCK"), socket.SOCK_STREAM, 0).close()


@_attempt()
def resolve_name(targets: Targets) -> str:
    return str(socket.getaddrinfo("localhost", 80)[0][4])


@_attempt("abstract_socket")
def connect_abstract_unix(targets: Targets) -> None:
    _connected(socket.AF_UNIX, socket.SOCK_STREAM, b"\0" + os.fsencode(str(targets["abstract_socket"])))


@_attempt("path_socket")
def connect_path_unix(targets: Targets) -> None:
    _connected(socket.AF_UNIX, socket.SOCK_STREAM, str(targets["path_socket"]))


@_attempt()
def make_socket_pair(targets: Targets) -> None:
    for end in socket.socketpair():
        end.close()


# ---- files ----


def _read_some(path: str) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return f"{len(os.read(descriptor, 64))} bytes"
    finally:
        os.close(descriptor)


@_attempt("home_file")
def read_home_file(targets: Targets) -> str:
    return _read_some(str(targets["home_file"]))


@_attempt("home")
def list_home(targets: Targets) -> str:
    return f"{len(os.listdir(str(targets['home'])))} names"


@_attempt("other_model")
def read_other_model(targets: Targets) -> str:
    return _read_some(str(targets["other_model"]))


@_attempt("model")
def reopen_model_for_writing(targets: Targets) -> None:
    """What a child would do with a model that it holds open for reading: open it anew through /proc."""
    os.close(os.open(str(targets["model"]), os.O_WRONLY | os.O_CLOEXEC))


@_attempt()
def read_user_list(targets: Targets) -> str:
    return _read_some("/etc/passwd")


@_attempt()
def list_root(targets: Targets) -> str:
    return f"{len(os.listdir('/'))} names"


@_attempt()
def list_processes(targets: Targets) -> str:
    return f"{sum(name.isdigit() for name in os.listdir('/proc'))} processes"


@_attempt()
def list_connections(targets: Targets) -> str:
    """Every connection of the machine stands here, below the process's own folder."""
    return _read_some("/proc/self/net/tcp")


@_attempt("victim_pid")
def read_victim_environment(targets: Targets) -> str:
    return _read_some(f"/proc/{targets['victim_pid']}/environ")


@_attempt("victim_pid")
def read_victim_command_line(targets: Targets) -> str:
    return _read_some(f"/proc/{targets['victim_pid']}/cmdline")


@_attempt("victim_pid")
def open_victim_memory(targets: Targets) -> None:
    os.close(os.open(f"/proc/{targets['victim_pid']}/mem", os.O_RDONLY | os.O_CLOEXEC))


def _create_in(folder: str) -> None:
    path = os.path.join(folder, f"enclave-probe-{os.getpid()}")
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    # Behind a filter without Landlock a file can be made and not removed: that is no refusal.
    with contextlib.suppress(OSError):
        os.unlink(path)


@_attempt("temporary_folder")
def create_file(targets: Targets) -> None:
    _create_in(str(targets["temporary_folder"]))


@_attempt("shared_memory_folder")
def create_in_shared_memory(targets: Targets) -> None:
    _create_in(str(targets["shared_memory_folder"]))


@_attempt("temporary_folder")
def create_folder(targets: Targets) -> None:
    path = os.path.join(str(targets["temporary_folder"]), f"enclave-probe-folder-{os.getpid()}")
    os.mkdir(path)
    os.rmdir(path)


@_attempt("temporary_folder")
def create_symlink(targets: Targets) -> None:
    path = os.path.join(str(targets["temporary_folder"]), f"enclave-probe-link-{os.getpid()}")
    os.symlink("nowhere", path)
    os.unlink(path)


@_attempt("model")
def truncate_model(targets: Targets) -> None:
    """To the size that it has: the right is what is asked for."""
    os.truncate(str(targets["model"]), os.stat(str(targets["model"])).st_size)


@_attempt("expendable")
def truncate_by_opening(targets: Targets) -> None:
    """O_TRUNC with read access: a truncation that Landlock before ABI 3 takes for reading."""
    os.close(os.open(str(targets["expendable"]), os.O_RDONLY | os.O_TRUNC | os.O_CLOEXEC))


@_attempt("home_file")
def open_for_control_only(targets: Targets) -> None:
    """Access mode 3 asks for neither reading nor writing, so Landlock lets it through for any file."""
    os.close(os.open(str(targets["home_file"]), 3 | os.O_CLOEXEC))


@_attempt("model")
def change_mode(targets: Targets) -> None:
    path = str(targets["model"])
    os.chmod(path, os.stat(path).st_mode & 0o7777)


@_attempt("model")
def change_owner(targets: Targets) -> None:
    os.chown(str(targets["model"]), -1, -1)


@_attempt("model")
def change_times(targets: Targets) -> None:
    os.utime(str(targets["model"]))


@_attempt("model")
def set_attribute(targets: Targets) -> None:
    path = str(targets["model"])
    if sys.platform != "linux":
        raise _NotHereError("no extended attributes in this Python")
    os.setxattr(path, "user.enclave-probe", b"1")
    os.removexattr(path, "user.enclave-probe")


@_attempt("model")
def rename_model(targets: Targets) -> None:
    path = str(targets["model"])
    os.rename(path, f"{path}.renamed")
    os.rename(f"{path}.renamed", path)


@_attempt("model")
def link_model(targets: Targets) -> None:
    path = str(targets["model"])
    os.link(path, f"{path}.linked")
    os.unlink(f"{path}.linked")


@_attempt("home_file")
def see_home_file(targets: Targets) -> str:
    return f"size {os.stat(str(targets['home_file'])).st_size}"


# ---- processes ----


@_attempt()
def fork(targets: Targets) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


@_attempt()
def spawn_shell(targets: Targets) -> None:
    pid = os.posix_spawn("/bin/sh", ["/bin/sh", "-c", ":"], {})
    os.waitpid(pid, 0)


@_attempt("program")
def execute(targets: Targets) -> None:
    os.execve(str(targets["program"]), ["program"], {})


@_attempt("program")
def execute_by_descriptor(targets: Targets) -> None:
    """With the empty path and AT_EMPTY_PATH: the file itself, through an open descriptor."""
    descriptor = os.open(str(targets["program"]), _O_PATH)
    try:
        _system_call("execveat", descriptor, b"", struct.pack("@P", 0), struct.pack("@P", 0), 0x1000)
    finally:
        os.close(descriptor)


@_attempt("victim_pid")
def signal_victim(targets: Targets) -> None:
    os.kill(int(targets["victim_pid"]), 0)


@_attempt("victim_pid")
def signal_victim_thread(targets: Targets) -> None:
    victim = int(targets["victim_pid"])
    _system_call("tgkill", victim, victim, 0)


@_attempt("victim_pid")
def aim_signal_by_owner(targets: Targets) -> None:
    """F_SETOWN names who gets a descriptor's signals, and F_SETSIG which: a kill by another name."""
    import fcntl

    reader, writer = os.pipe2(os.O_CLOEXEC) if sys.platform == "linux" else os.pipe()
    try:
        fcntl.fcntl(reader, fcntl.F_SETOWN, int(targets["victim_pid"]))
        fcntl.fcntl(reader, fcntl.F_SETOWN, 0)
    finally:
        os.close(reader)
        os.close(writer)


@_attempt("victim_pid")
def handle_on_victim(targets: Targets) -> None:
    os.close(_system_call("pidfd_open", int(targets["victim_pid"]), 0))


@_attempt("victim_pid")
def read_victim_memory(targets: Targets) -> None:
    """From address 0: EFAULT comes only after the right was granted."""
    here = ctypes.create_string_buffer(8)
    local, remote = struct.pack("@PN", ctypes.addressof(here), 8), struct.pack("@PN", 0, 8)
    _system_call("process_vm_readv", int(targets["victim_pid"]), local, 1, remote, 1, 0)


@_attempt("victim_pid")
def trace_victim(targets: Targets) -> None:
    """PTRACE_SEIZE, without stopping it; the kernel lets go of it when this process ends."""
    _system_call("ptrace", 0x4206, int(targets["victim_pid"]), 0, 0)


@_attempt("victim_pid")
def lower_victim_priority(targets: Targets) -> None:
    victim = int(targets["victim_pid"])
    os.setpriority(os.PRIO_PROCESS, victim, os.getpriority(os.PRIO_PROCESS, victim))


@_attempt("victim_pid")
def choose_victim_processors(targets: Targets) -> None:
    if sys.platform != "linux":
        raise _NotHereError("no affinity calls in this Python")
    victim = int(targets["victim_pid"])
    os.sched_setaffinity(victim, os.sched_getaffinity(victim))


# ---- the kernel ----


@_attempt()
def io_uring(targets: Targets) -> None:
    os.close(_system_call("io_uring_setup", 1, bytes(120)))


@_attempt()
def userfault(targets: Targets) -> None:
    os.close(_system_call("userfaultfd", 1))


@_attempt()
def keyring(targets: Targets) -> None:
    """The number of the session's keyring."""
    _system_call("keyctl", 0, -3, 0)


@_attempt()
def namespaces(targets: Targets) -> None:
    """Unsharing nothing: works anywhere and changes nothing, unless the call is closed."""
    _system_call("unshare", 0)


@_attempt()
def mount(targets: Targets) -> None:
    """Onto a path that doesn't exist: who may mount gets as far as ENOENT."""
    try:
        _system_call("mount", b"none", b"/nonexistent/enclave-probe", b"tmpfs", 0, None)
    except FileNotFoundError:
        return


@_attempt()
def performance_counters(targets: Targets) -> None:
    attribute = struct.pack("=IIQ", 1, 112, 0) + bytes(24) + struct.pack("=Q", 0x61) + bytes(64)
    os.close(_system_call("perf_event_open", attribute, 0, -1, -1, 0))


@_attempt()
def kernel_programs(targets: Targets) -> None:
    os.close(_system_call("bpf", 0, struct.pack("=IIII", 2, 4, 4, 1) + bytes(104), 120))


@_attempt()
def memory_file(targets: Targets) -> None:
    os.close(_system_call("memfd_create", b"enclave-probe", 1))


@_attempt()
def raise_core_limit(targets: Targets) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_CORE)
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, before[1] if before[1] != 0 else 1 << 20))
    except ValueError as refused:
        # Python's word for EPERM here.
        raise PermissionError(errno.EPERM, str(refused)) from refused
    resource.setrlimit(resource.RLIMIT_CORE, before)


@_attempt()
def become_visible(targets: Targets) -> None:
    """PR_SET_DUMPABLE back to 1: core dumps and debuggers again."""
    libc = _libc()
    before = libc.prctl(3, *map(ctypes.c_ulong, (0, 0, 0, 0)))
    if libc.prctl(4, *map(ctypes.c_ulong, (1, 0, 0, 0))) != 0:
        raise _last_error()
    libc.prctl(4, *map(ctypes.c_ulong, (before, 0, 0, 0)))


@_attempt()
def another_filter(targets: Targets) -> None:
    """Only whether the call answers: it is how a process would listen in on its own threads' calls."""
    _system_call("seccomp", 2, 0, struct.pack("=I", 0x7FC00000))


# Last: it takes away what others need.
@_attempt("expendable")
def remove_file(targets: Targets) -> None:
    os.unlink(str(targets["expendable"]))


OPEN_BY_DESIGN: Final[Mapping[str, str]] = {
    "see_home_file": "existence, size and times of any file that the user can reach stay visible",
    "choose_victim_processors": "a library's threads are placed on processors by thread id, so that call stays open",
}

_O_PATH: Final = 0o10000000


def _constant(module: object, name: str) -> int:
    value = getattr(module, name, None)
    if not isinstance(value, int):
        raise _NotHereError(f"no {name} here")
    return value


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    ctypes.set_errno(0)
    return libc


def _last_error() -> OSError:
    return OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _machine() -> Machine:
    name = os.uname().machine
    if sys.platform != "linux" or struct.calcsize("P") != 8:
        raise _NotHereError("no such system call here")
    if name == "x86_64" or name == "aarch64":
        return name
    raise _NotHereError(f"no call numbers known for {name}")


def _system_call(name: str, *arguments: int | bytes | None) -> int:
    """Calls the kernel by name; raises OSError as a library would."""
    number = number_of(name, _machine())
    if number is None:
        raise _NotHereError(f"{name} doesn't exist on this machine")
    as_words = [
        ctypes.c_char_p(argument) if isinstance(argument, bytes) else ctypes.c_long(argument or 0)
        for argument in arguments
    ]
    answer = int(_libc().syscall(ctypes.c_long(number), *as_words))
    if answer < 0:
        raise _last_error()
    return answer
