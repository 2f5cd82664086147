"""Puts this process behind its walls, once and for good: `enter` is the first thing that a child does.

Called with one thread, before anything of others is imported. Applies what the kernel offers, checks that it holds, and
reports it as `Walls`; it never opens a way out again and knows nothing of models, links or the daemon.

Order, and why: 1. no core dump, no look from outside, end with the parent (prctl is refused later) · 2. no
capabilities, no way to gain any (both layers ask for that) · 3. Landlock (its calls are refused by the filter) · 4. the
filter · 5. attempts that must fail, and the kernel's own word.
"""
# pathlib takes longer to load (2.6 ms) than the walls to go up (1.5 ms).
# ruff: noqa: PTH115, PTH208

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final, Literal, cast

from enclaved.sandbox import filter as seccomp_filter
from enclaved.sandbox.lookers import shut_lookers_out
from enclaved.sandbox.profile import ACCESS_RIGHTS
from enclaved.sandbox.status import SECCOMP_MODE_FILTER, ThreadWalls, parse_status
from enclaved.sandbox.tables import (
    NEWEST_LANDLOCK_ABI,
    REFUSED_ERRNO,
    Machine,
    by_filter_only,
    landlock_masks,
    missing_rights,
    number_of,
    rights_mask,
)

if TYPE_CHECKING:
    from collections.abc import Collection

    from enclaved.sandbox.profile import Profile

State = Literal["full", "partial", "none"]

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38
_SIGKILL: Final = 9
_SECCOMP_SET_MODE_FILTER: Final = 1
_SECCOMP_GET_ACTION_AVAIL: Final = 2
_SECCOMP_FLAG_TSYNC: Final = 1
_LANDLOCK_CREATE_RULESET_VERSION: Final = 1
_LANDLOCK_RULE_PATH_BENEATH: Final = 1
_CAPABILITY_VERSION_3: Final = 0x20080522
_O_PATH: Final = 0o10000000

# Landlock's calls have the same numbers on every machine with the generic table and on x86-64.
_LANDLOCK_MACHINES: Final = frozenset({"x86_64", "aarch64", "riscv64", "loongarch64", "ppc64le", "s390x"})
# How a kernel, or a container's filter around this process, says that it doesn't have a feature.
_NOT_HERE: Final = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.EINVAL})
_NOTHING_TO_GRANT: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP, errno.ENXIO})

_OPEN_BY_DESIGN: Final = (
    "existence, size and times of files, and where links point",
    "choosing the processors on which the user's other processes run",
    "memory that is both writable and executable, within the child",
)


class SandboxError(RuntimeError):
    """The kernel has a wall and it could not be put up, or does not hold. A child that sees this must not serve."""

    code: Final = "sandbox_failed"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True)
class Pretend:
    """For tests: a machine that has less than this one."""

    landlock_abi: int | None = None
    """Highest Landlock ABI to use; 0 for none."""
    seccomp: bool = True
    machine: str | None = None
    """Another machine's name as uname says it; the system calls stay this one's."""


@dataclass(frozen=True)
class Walls:
    """What stands around this process, as checked, in words for a person and facts for a program."""

    state: State
    """full: nothing is in `missing` · partial: some of it · none: neither Landlock nor a filter."""
    landlock_abi: int
    """ABI of the rules in force, 0 for none. Above the newest known here only known rights are handled."""
    landlock_lacks: tuple[str, ...]
    """Rights that newer kernels have and this one can't refuse by Landlock, by the kernel's names."""
    seccomp: bool
    seccomp_filters: int
    """Filters in force on this process, its own and those inherited; 0 also where the kernel doesn't count them."""
    no_new_privs: bool
    capabilities_dropped: bool
    stands: tuple[str, ...]
    single: tuple[str, ...]
    """Promises that one of the two layers holds alone here ("TCP by seccomp only")."""
    missing: tuple[str, ...]
    """Promises that nothing holds here, with the reason."""
    open_by_design: tuple[str, ...]
    """What no wall here keeps from a child."""
    paths_left_out: tuple[str, ...]
    """Paths of the profile that this machine lacks or that this user can't reach."""

    def to_dict(self) -> dict[str, object]:
        """Plain values for a message or a page: lists, strings, numbers and booleans."""
        values: dict[str, object] = asdict(self)
        return {
            key: list(cast("tuple[str, ...]", value)) if isinstance(value, tuple) else value
            for key, value in values.items()
        }


def enter(
    profile: Profile,
    *,
    die_with_parent: bool = True,
    parent_pid: int | None = None,
    descriptors: Collection[int] | None = None,
    pretend: Pretend | None = None,
) -> Walls:
    """Applies `profile` to this process and all threads that it will start; there is no way back.

    `parent_pid` is the daemon's, to notice that it died before this process asked to end with it. Its signal comes when
    the parent's *thread* that spawned this child ends: spawn from one that lasts. `descriptors`, when given, names
    every open file beyond the standard three that this child may hold.

    An old kernel is no error: what it lacks is named in the report. Raises SandboxError when a wall that the kernel
    offers does not go up or does not hold, when other threads run already, when the parent is gone, or when a
    descriptor is open that was not named.
    """
    if sys.platform != "linux":
        return _without_kernel_help(f"this system ({sys.platform}) has neither Landlock nor seccomp")
    return _Entrance(profile, pretend or Pretend()).enter(die_with_parent, parent_pid, descriptors)


class _Entrance:
    """One go through the door: what was found out on the way is kept for the report."""

    def __init__(self, profile: Profile, pretend: Pretend) -> None:
        self._profile = profile
        self._pretend = pretend
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.syscall.restype = ctypes.c_long
        machine = pretend.machine or os.uname().machine
        self._machine = machine if struct.calcsize("P") == 8 else f"32-bit {machine}"
        self._missing: list[str] = []
        self._paths_left_out: list[str] = []
        # Opened now, so that it can be read again when no path right is left.
        self._status_descriptor = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)

    def enter(self, die_with_parent: bool, parent_pid: int | None, descriptors: Collection[int] | None) -> Walls:
        before = self._status()
        if before.threads != 1:
            raise SandboxError(
                f"{before.threads} threads run already: Landlock would leave the others free",
                hint="enter before importing anything that starts threads (numpy's OpenBLAS does)",
            )
        if descriptors is not None:
            self._refuse_other_descriptors(descriptors)
        try:
            shut_lookers_out()
        except OSError as error:
            raise SandboxError(str(error.strerror)) from error
        if die_with_parent:
            self._die_with_parent(parent_pid)
        capabilities_dropped = self._drop_capabilities()
        self._prctl("give up new privileges", _PR_SET_NO_NEW_PRIVS, 1)
        landlock_abi = self._restrict_files()
        seccomp = self._install_filter()
        after = self._status()
        self._check(before, after, landlock_abi, seccomp, capabilities_dropped)
        os.close(self._status_descriptor)
        return self._report(after, landlock_abi, seccomp, capabilities_dropped, die_with_parent)

    def _refuse_other_descriptors(self, descriptors: Collection[int]) -> None:
        listing = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            found = {int(name) for name in os.listdir(listing)}
            known = {0, 1, 2, self._status_descriptor, listing, *descriptors}
            # os.listdir works on a duplicate, which is gone when it returns.
            others = {number: _target(number) for number in sorted(found - known) if _is_open(number)}
        finally:
            os.close(listing)
        if others:
            named = ", ".join(f"{number} ({target})" for number, target in others.items())
            raise SandboxError(
                f"files are open that this child was not given: {named}",
                hint="spawn it with close_fds=True and only its channel in pass_fds",
            )

    def _die_with_parent(self, parent_pid: int | None) -> None:
        self._prctl("end with its parent", _PR_SET_PDEATHSIG, _SIGKILL)
        if parent_pid is not None and os.getppid() != parent_pid:
            raise SandboxError(f"the parent {parent_pid} is gone: {os.getppid()} has taken its place")

    def _drop_capabilities(self) -> bool:
        """Root's powers are worth nothing to a child, and some pass by the walls (raising limits, other users'
        files)."""
        number = self._number("capset")
        if number is None:
            self._missing.append(f"capabilities kept: no call number known for {self._machine}")
            return False
        header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
        if self._syscall(number, header, bytes(24)) != 0:
            self._missing.append(f"capabilities kept: {_error_name(ctypes.get_errno())} when dropping them")
            return False
        return True

    def _restrict_files(self) -> int:
        abi = self._landlock_abi()
        if abi == 0:
            return 0
        masks = landlock_masks(abi)
        attribute = struct.pack("=QQQ", masks.file_rights, masks.network_rights, masks.scopes)[: masks.attribute_bytes]
        ruleset = self._must("make a Landlock ruleset", 444, attribute, len(attribute), 0)
        try:
            for grant in self._profile.grants:
                self._grant(ruleset, grant.path, ACCESS_RIGHTS[grant.access], abi)
            self._must("apply the Landlock rules", 446, ruleset, 0)
        finally:
            os.close(ruleset)
        return abi

    def _landlock_abi(self) -> int:
        files_open = "files: a child can open whatever the user can"
        if self._pretend.landlock_abi == 0:
            self._missing.append(f"{files_open} (Landlock is left out on request)")
            return 0
        if self._machine not in _LANDLOCK_MACHINES:
            self._missing.append(f"{files_open} (no Landlock known on {self._machine})")
            return 0
        version = self._syscall(444, None, 0, _LANDLOCK_CREATE_RULESET_VERSION)
        if version >= 1:
            return min(version, NEWEST_LANDLOCK_ABI, self._pretend.landlock_abi or version)
        number = ctypes.get_errno()
        if number not in _NOT_HERE:
            raise SandboxError(f"asking for Landlock's version: {_error_name(number)}")
        why = {
            errno.ENOSYS: "the kernel is older than 5.13 or has no Landlock",
            errno.EOPNOTSUPP: "Landlock is off at boot",
        }
        self._missing.append(f"{files_open} ({why.get(number, f'Landlock answers {_error_name(number)}')})")
        return 0

    def _grant(self, ruleset: int, path: str, rights: frozenset[str], abi: int) -> None:
        try:
            descriptor = os.open(path, _O_PATH | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in _NOTHING_TO_GRANT:
                raise SandboxError(f"granting {path}: {error.strerror}") from error
            self._paths_left_out.append(path)
            return
        try:
            allowed = rights_mask(rights, abi, is_folder=stat.S_ISDIR(os.fstat(descriptor).st_mode))
            if allowed:
                rule = struct.pack("=Qi", allowed, descriptor)
                self._must(f"grant {path}", 445, ruleset, _LANDLOCK_RULE_PATH_BENEATH, rule, 0)
        finally:
            # A rule is tied to an inode. Those of /proc are made anew when the kernel has dropped its cache (measured:
            # after drop_caches /proc/cpuinfo was refused), unless something holds on to them. Such a descriptor opens
            # nothing.
            if not path.startswith("/proc/"):
                os.close(descriptor)

    def _install_filter(self) -> bool:
        machine, number = _known_machine(self._machine), self._number("seccomp")
        if not self._pretend.seccomp:
            self._missing_without_filter("seccomp is left out on request")
            return False
        if machine is None or number is None:
            self._missing_without_filter(f"no filter is known for {self._machine}")
            return False
        errno_action = struct.pack("=I", seccomp_filter.ERRNO)
        if self._syscall(number, _SECCOMP_GET_ACTION_AVAIL, 0, errno_action) != 0:
            self._missing_without_filter(f"seccomp answers {_error_name(ctypes.get_errno())}")
            return False
        extra_calls, any_ioctl = self._profile.extra_calls, self._profile.any_ioctl
        instructions = seccomp_filter.program(machine, os.getpid(), extra_calls=extra_calls, any_ioctl=any_ioctl)
        code = ctypes.create_string_buffer(seccomp_filter.encoded(instructions), 8 * len(instructions))
        program = struct.pack("@HP", len(instructions), ctypes.addressof(code))
        # A positive answer is the id of a thread that could not be brought along.
        if self._must("install the filter", number, _SECCOMP_SET_MODE_FILTER, _SECCOMP_FLAG_TSYNC, program) != 0:
            raise SandboxError("a thread runs that the filter does not bind")
        return True

    def _missing_without_filter(self, why: str) -> None:
        self._missing += [
            f"{what} ({why})"
            for what in (
                "network: sockets are refused by Landlock at most in part",
                "processes: a child can start others and reach those of the user",
                "rights, owners and times of the user's files can be changed",
            )
        ]

    def _check(
        self, before: ThreadWalls, after: ThreadWalls, landlock_abi: int, seccomp: bool, capabilities_dropped: bool
    ) -> None:
        """The report says only what was just seen to hold."""
        wrong: list[str] = []
        if not after.no_new_privs:
            wrong.append("NoNewPrivs is not set")
        if capabilities_dropped and after.capabilities:
            wrong.append(f"capabilities are left: {after.capabilities:x}")
        if seccomp:
            if after.seccomp_mode != SECCOMP_MODE_FILTER:
                wrong.append(f"Seccomp is {after.seccomp_mode}")
            if after.seccomp_filters is not None and after.seccomp_filters != (before.seccomp_filters or 0) + 1:
                wrong.append(f"Seccomp_filters went from {before.seccomp_filters} to {after.seccomp_filters}")
            if self._a_socket_opens():
                wrong.append("a socket could be made")
        if landlock_abi and self._the_root_folder_opens():
            wrong.append("the root folder could be listed")
        if wrong:
            raise SandboxError(f"the walls do not hold: {'; '.join(wrong)}")

    def _a_socket_opens(self) -> bool:
        number = self._number("socket")
        assert number is not None, "a filter stands only on a machine in the tables"
        descriptor = self._syscall(number, 2, 1, 0)
        refused = descriptor < 0 and ctypes.get_errno() == REFUSED_ERRNO
        if descriptor >= 0:
            os.close(descriptor)
        return not refused

    def _the_root_folder_opens(self) -> bool:
        try:
            os.close(os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        except OSError as error:
            return error.errno != errno.EACCES
        return True

    def _report(
        self, after: ThreadWalls, landlock_abi: int, seccomp: bool, capabilities_dropped: bool, die_with_parent: bool
    ) -> Walls:
        stands = ["no core dump, no look into its memory by other programs", "no new privileges"]
        if capabilities_dropped:
            stands.append("no capabilities")
        if die_with_parent:
            stands.append("ends with its parent")
        if landlock_abi:
            stands.append(f"files: only what its profile names (Landlock ABI {landlock_abi})")
        if seccomp:
            stands.append("network: no socket of any kind can be made (seccomp)")
            stands.append("processes: none can be started, signalled or looked into (seccomp)")
            stands.append("files: no rights, owners, times or names can be changed (seccomp)")
        if not seccomp and landlock_abi >= 4:
            stands.append(f"network: no TCP (Landlock ABI {landlock_abi})")
        state: State = "none" if not (landlock_abi or seccomp) else "partial" if self._missing else "full"
        single = by_filter_only(landlock_abi) if seccomp else ()
        weaker = (
            ("control requests to the devices granted: a driver's whole surface",) if self._profile.any_ioctl else ()
        )
        return Walls(
            state=state,
            landlock_abi=landlock_abi,
            landlock_lacks=missing_rights(landlock_abi),
            seccomp=seccomp,
            seccomp_filters=after.seccomp_filters or 0,
            no_new_privs=after.no_new_privs,
            capabilities_dropped=capabilities_dropped,
            stands=tuple(stands),
            single=single,
            missing=tuple(self._missing),
            open_by_design=(*_OPEN_BY_DESIGN, *weaker),
            paths_left_out=tuple(self._paths_left_out),
        )

    def _status(self) -> ThreadWalls:
        text = os.pread(self._status_descriptor, 65536, 0).decode("ascii", "replace")
        try:
            return parse_status(text)
        except ValueError as error:
            raise SandboxError(f"this kernel doesn't say what stands: {error}") from error

    def _number(self, name: str) -> int | None:
        machine = _known_machine(self._machine)
        return None if machine is None else number_of(name, machine)

    def _prctl(self, what: str, option: int, value: int) -> None:
        if self._libc.prctl(option, *map(ctypes.c_ulong, (value, 0, 0, 0))) != 0:
            raise SandboxError(f"could not {what}: {_error_name(ctypes.get_errno())}")

    def _syscall(self, number: int, *arguments: int | bytes | None) -> int:
        as_words = [
            ctypes.c_char_p(argument) if isinstance(argument, bytes) else ctypes.c_long(argument or 0)
            for argument in arguments
        ]
        ctypes.set_errno(0)
        return self._libc.syscall(ctypes.c_long(number), *as_words)

    def _must(self, what: str, number: int, *arguments: int | bytes | None) -> int:
        answer = self._syscall(number, *arguments)
        if answer < 0:
            raise SandboxError(f"could not {what}: {_error_name(ctypes.get_errno())}")
        return answer


def _without_kernel_help(reason: str) -> Walls:
    stands: tuple[str, ...] = ()
    if sys.platform != "win32":
        shut_lookers_out()
        stands = ("no core dump",)
    return Walls(
        state="none",
        landlock_abi=0,
        landlock_lacks=missing_rights(0),
        seccomp=False,
        seccomp_filters=0,
        no_new_privs=False,
        capabilities_dropped=False,
        stands=stands,
        single=(),
        missing=(f"files, network and processes of the user are open to a child: {reason}",),
        open_by_design=_OPEN_BY_DESIGN,
        paths_left_out=(),
    )


def _known_machine(name: str) -> Machine | None:
    return name if name == "x86_64" or name == "aarch64" else None


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _target(descriptor: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return "unknown"


def _error_name(number: int) -> str:
    return errno.errorcode.get(number, f"errno {number}")
