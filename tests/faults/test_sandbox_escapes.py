"""Real children behind real walls: what they try in vain, what must go on working, and what the daemon can see of it.

Each attempt is made outside and inside, by a child that differs in nothing else. As root everything runs a second time
as an ordinary user: root's powers hide what permissions would say.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from enclaved.sandbox import probes
from enclaved.sandbox.probes import Outcome, Targets, judge
from enclaved.sandbox.status import confirms, objections, read_walls_of
from enclaved.sandbox.tables import AUDIT_ARCHITECTURE, NEWEST_LANDLOCK_ABI

ROOT = Path(__file__).parents[2]
CHILD = Path(__file__).with_name("sandbox_child.py")
NOBODY = 65534

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in AUDIT_ARCHITECTURE,
    reason="Landlock and seccomp are Linux's, and the filter knows x86-64 and aarch64",
)


def landlock_abi() -> int:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    version = int(libc.syscall(ctypes.c_long(444), None, ctypes.c_size_t(0), ctypes.c_uint(1)))
    return min(max(0, version), NEWEST_LANDLOCK_ABI)


KERNEL_ABI = landlock_abi() if sys.platform == "linux" else 0
needs_landlock = pytest.mark.skipif(KERNEL_ABI == 0, reason="this kernel has no Landlock")
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can")
ACCOUNTS = [
    pytest.param(None, id="this-user"),
    pytest.param(NOBODY, id="ordinary-user", marks=needs_root),
]


class Child:
    """One throw-away child, told what to do by lines."""

    def __init__(self, home: str, *, pass_fds: tuple[int, ...] = (), **options: Any) -> None:
        options = {"root": str(ROOT), "home": home, **options}
        self.process = subprocess.Popen(
            [sys.executable, "-I", str(CHILD), json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=pass_fds,
            env={
                "PATH": os.environ.get("PATH", ""),
                "LANG": "C.UTF-8",
                "OPENBLAS_NUM_THREADS": "2",
                "OMP_NUM_THREADS": "2",
            },
            text=True,
        )
        self.hello: dict[str, Any] = self.answer()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            assert self.process.stderr is not None
            pytest.fail(f"the child ended ({self.process.wait()}): {self.process.stderr.read()}")
        return json.loads(line)

    def send(self, **order: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def tell(self, **order: Any) -> Any:
        self.send(**order)
        return self.answer()

    def probe(self, targets: Targets, *names: str) -> dict[str, Outcome]:
        answer = self.tell(do="probe", targets=targets, **({"names": names} if names else {}))
        return {outcome["name"]: Outcome.from_dict(outcome) for outcome in answer}

    def close(self) -> None:
        self.process.communicate()


@contextlib.contextmanager
def child(home: str = "/nonexistent", **options: Any) -> Generator[Child]:
    one = Child(home, **options)
    try:
        yield one
    finally:
        one.close()


@contextlib.contextmanager
def made_targets(account: int | None) -> Generator[Targets]:
    """Everything that the attempts aim at, owned by the account."""
    with contextlib.ExitStack() as stack:
        # Not tmp_path: another user must be able to walk there.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="enclave-test-")))
        home = folder / "home"
        home.mkdir()
        for name in ("home_file", "other_model", "model", "expendable"):
            (home / name).write_bytes(b"something to read")
        (home / "program").touch(mode=0o755)
        temporary = folder / "temporary"
        temporary.mkdir()
        path_socket = stack.enter_context(socket.socket(socket.AF_UNIX))
        path_socket.bind(str(home / "socket"))
        abstract_name = f"enclave-test-{os.getpid()}-{folder.name}"
        abstract_socket = stack.enter_context(socket.socket(socket.AF_UNIX))
        abstract_socket.bind("\0" + abstract_name)
        shared_memory: list[Path] = []
        if Path("/dev/shm").is_dir():
            made = tempfile.TemporaryDirectory(prefix="enclave-test-", dir="/dev/shm")
            shared_memory.append(Path(stack.enter_context(made)))
        if account is not None:
            for path in (folder, *folder.rglob("*"), *shared_memory):
                os.chown(path, account, account)
        victim = stack.enter_context(child(account=account, enter=False))
        targets: Targets = {
            "home": str(home),
            **{name: str(home / name) for name in ("home_file", "other_model", "model", "expendable", "program")},
            "temporary_folder": str(temporary),
            "path_socket": str(home / "socket"),
            "abstract_socket": abstract_name,
            "victim_pid": victim.process.pid,
        }
        if shared_memory:
            targets["shared_memory_folder"] = str(shared_memory[0])
        for listener in (path_socket, abstract_socket):
            listener.listen(8)
        families = [("4", socket.AF_INET, "127.0.0.1")]
        if socket.has_ipv6:
            families.append(("6", socket.AF_INET6, "::1"))
        for version, family, address in families:
            with contextlib.suppress(OSError):  # a machine built with IPv6 and started without
                tcp = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
                tcp.bind((address, 0))
                tcp.listen(8)
                udp = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
                udp.bind((address, 0))
                targets[f"tcp{version}_port"] = tcp.getsockname()[1]
                targets[f"udp{version}_port"] = udp.getsockname()[1]
        yield targets


def both(
    account: int | None, names: tuple[str, ...] = (), **walls: Any
) -> tuple[dict[str, Outcome], dict[str, Outcome], Any]:
    with made_targets(account) as targets:
        # Readable inside, so that what is refused is changing them.
        readable = [targets[name] for name in ("model", "expendable", "program")]
        with child(str(targets["home"]), account=account, readable=readable, **walls) as prisoner:
            inside = prisoner.probe(targets, *names)
            report = prisoner.hello["walls"]
        # Second: some of what works outside takes away what the other aims at.
        with child(account=account, enter=False) as free:
            outside = free.probe(targets, *names)
    return outside, inside, report


def verdicts(outside: dict[str, Outcome], inside: dict[str, Outcome]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, outcome in inside.items():
        found.setdefault(judge(outside[name], outcome), []).append(name)
    return found


ALL_ABIS = [None, *range(1, KERNEL_ABI)] if KERNEL_ABI else []


@needs_landlock
@pytest.mark.parametrize("abi", ALL_ABIS, ids=lambda abi: f"abi-{abi or 'best'}")
@pytest.mark.parametrize("account", ACCOUNTS)
def test_nothing_that_works_outside_works_inside(account: int | None, abi: int | None) -> None:
    outside, inside, report = both(account, landlock_abi=abi)
    found = verdicts(outside, inside)
    print(f"refused by the system anyway: {found.get('refused by the system anyway', [])}")
    print(f"not tried: {[(name, inside[name].detail) for name in found.get('not tried', [])]}")

    assert "allowed" not in found, {name: inside[name] for name in found["allowed"]}
    assert report["state"] == "full"
    assert report["landlock_abi"] == (abi or KERNEL_ABI)
    assert ("truncate" in report["landlock_lacks"]) == (report["landlock_abi"] < 3)
    # Root's processes are out of reach of a child that gave up root's capabilities: there one of the two is shut as
    # well.
    assert {"see_home_file"} <= set(found["open by design"]) <= set(probes.OPEN_BY_DESIGN)
    # That the attempts are sound shows outside, where a plain user's rights carry most of them.
    worked = {name for name, outcome in outside.items() if outcome.allowed}
    assert {
        "connect_tcp4",
        "bind_tcp4",
        "send_udp4",
        "connect_abstract_unix",
        "connect_path_unix",
        "resolve_name",
    } <= worked
    assert {"read_home_file", "read_other_model", "list_home", "read_victim_environment", "list_connections"} <= worked
    assert {
        "create_file",
        "truncate_model",
        "truncate_by_opening",
        "change_mode",
        "rename_model",
        "remove_file",
    } <= worked
    assert {"fork", "spawn_shell", "execute", "execute_by_descriptor", "signal_victim", "aim_signal_by_owner"} <= worked
    assert len(worked) >= 45
    assert all(name.endswith("6") or name == "create_in_shared_memory" for name in found.get("not tried", []))


@needs_landlock
def test_without_the_filter_landlock_still_holds_files_and_the_report_says_what_is_open() -> None:
    outside, inside, report = both(None, seccomp=False)
    found = verdicts(outside, inside)

    assert {"read_home_file", "read_other_model", "list_home", "read_user_list", "list_connections"} <= set(
        found["refused"]
    )
    assert {"create_file", "reopen_model_for_writing", "execute"} <= set(found["refused"])
    assert {"fork", "change_mode", "send_udp4"} <= set(found["allowed"])
    assert report["state"] == "partial"
    assert report["seccomp"] is False
    assert any(missing.startswith("network") for missing in report["missing"])
    assert any(missing.startswith("processes") for missing in report["missing"])
    assert not any("seccomp" in stands for stands in report["stands"])


def test_without_landlock_the_filter_still_holds_the_network_and_the_report_says_that_files_are_open() -> None:
    outside, inside, report = both(None, landlock_abi=0)
    found = verdicts(outside, inside)

    assert {"connect_tcp4", "send_udp4", "connect_path_unix", "fork", "execute", "change_mode"} <= set(found["refused"])
    assert {"truncate_model", "truncate_by_opening", "rename_model", "signal_victim"} <= set(found["refused"])
    assert {"read_home_file", "read_user_list", "create_file"} <= set(found["allowed"])
    assert report["state"] == "partial"
    assert report["landlock_abi"] == 0
    assert any(missing.startswith("files") for missing in report["missing"])
    assert "TCP by seccomp only" in report["single"]


def test_without_both_the_state_is_none() -> None:
    with child(landlock_abi=0, seccomp=False) as one:
        assert one.hello["walls"]["state"] == "none"
        assert one.hello["walls"]["landlock_abi"] == 0


@needs_landlock
def test_a_machine_without_a_filter_says_so_and_keeps_landlock() -> None:
    with child(machine="riscv64") as one:
        report = one.hello["walls"]
    assert report["state"] == "partial"
    assert report["landlock_abi"] == KERNEL_ABI
    assert not report["seccomp"]
    assert any("no filter is known for riscv64" in missing for missing in report["missing"])
    assert any(missing.startswith("capabilities kept") for missing in report["missing"])


def test_a_system_without_either_says_none() -> None:
    with child(platform="darwin") as one:
        report = one.hello["walls"]
    assert report["state"] == "none"
    assert "darwin" in report["missing"][0]


INSTALLED = [name for name in ("numpy",) if importlib.util.find_spec(name)]


def told_what_a_worker_needs(account: int | None, modules: list[str], **walls: Any) -> tuple[dict[str, Any], Any]:
    ours, theirs = socket.socketpair()
    with ours, theirs, tempfile.TemporaryFile() as model:
        model.write(b"a model's bytes")
        model.flush()
        number = theirs.fileno()
        with child(account=account, pass_fds=(number,), descriptors=[number], **walls) as one:
            theirs.close()  # from here on the child's end is the end
            one.send(do="needs", targets={"channel": number, "modules": modules})
            socket.send_fds(ours, [b"load"], [model.fileno()])
            with contextlib.suppress(ConnectionError):  # a child that died says why in its answer
                assert ours.recv(64) == b"LOAD"
                ours.sendall(b"work")
            return one.answer(), one.hello


@pytest.mark.parametrize("abi", [None, *range(KERNEL_ABI)], ids=lambda abi: f"abi-{'best' if abi is None else abi}")
@pytest.mark.parametrize("account", ACCOUNTS)
def test_what_a_worker_needs_works_inside(account: int | None, abi: int | None) -> None:
    modules = INSTALLED if account is None else []  # another user may not reach this interpreter's libraries
    found, hello = told_what_a_worker_needs(account, modules, landlock_abi=abi)
    assert found["threads"] == [number * number for number in range(8)]
    assert found["callbacks"] == [1, 2, 3, 4, 5]
    assert found["dev_null"] == 7
    assert found["processors"]
    assert found["cpuinfo"] is True
    assert found["library"] is True
    assert bytes.fromhex(found["mapped"]) == b"a model's bytes"
    assert found["received"] == "load"
    assert found["read_in_a_thread"] == "work"
    if modules:
        assert found["numpy"] == 300.0**3
    print(f"profile and walls: {hello['seconds'] * 1000:.2f} ms")
    assert hello["seconds"] < 0.25


def test_llama_cpp_loads_a_model_that_it_only_has_as_an_open_file() -> None:
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama_cpp is not installed")
    path = ROOT.parent / "shared" / "models" / "stories260K" / "stories260K.gguf"
    candidates = [path] if path.exists() else sorted((ROOT.parent / "shared" / "models" / "stories260K").glob("*.gguf"))
    if not candidates:
        pytest.skip("no model at ../shared/models/stories260K")
    answers: list[dict[str, Any]] = []
    for inside in (True, False):
        ours, theirs = socket.socketpair()
        with ours, theirs, candidates[0].open("rb") as model:
            number = theirs.fileno()
            with child(pass_fds=(number,), enter=inside) as one:
                theirs.close()
                one.send(do="generate", targets={"channel": number})
                socket.send_fds(ours, [b"load"], [model.fileno()])
                answers.append(one.answer())
    assert answers[0]["status"] == 0
    assert answers[0] == answers[1]


@needs_landlock
@needs_root
def test_granted_files_of_the_kernel_stay_readable_after_its_cache_was_dropped() -> None:
    drop = Path("/proc/sys/vm/drop_caches")
    if not os.access(drop, os.W_OK):
        pytest.skip("this system doesn't let root drop the kernel's caches")
    with child() as one:
        try:
            drop.write_text("2")
        except OSError as error:
            pytest.skip(f"this system doesn't let root drop the kernel's caches: {error}")
        assert one.tell(do="read", path="/proc/cpuinfo") > 0
        assert one.tell(do="read", path="/proc/self/status") > 0


@pytest.mark.parametrize("account", ACCOUNTS)
def test_the_kernel_confirms_a_child_and_not_an_ordinary_process(account: int | None) -> None:
    with child(account=account) as inside, child(account=account, enter=False) as outside:
        report = inside.hello["walls"]
        observed = read_walls_of(inside.process.pid)
        assert confirms(observed, report), objections(observed, report)
        assert observed.first.threads == 1
        pretender = read_walls_of(outside.process.pid)
        assert not confirms(pretender, report)
        assert any("no seccomp filter" in objection for objection in objections(pretender, report))
    with pytest.raises(ProcessLookupError):
        read_walls_of(inside.process.pid)


def test_threads_started_inside_are_behind_the_same_walls() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        number = theirs.fileno()
        with child(pass_fds=(number,)) as one, tempfile.TemporaryFile() as model:
            model.write(b"x")
            model.flush()
            theirs.close()
            one.send(do="needs", targets={"channel": number, "modules": []})
            socket.send_fds(ours, [b"load"], [model.fileno()])
            assert ours.recv(64) == b"LOAD"
            # The child has answered and waits for more in a second thread, or is about to start it.
            observed = read_walls_of(one.process.pid)
            assert observed.threads_alike
            assert confirms(observed, one.hello["walls"])
            ours.sendall(b"work")
            assert one.answer()["read_in_a_thread"] == "work"


@needs_root
def test_another_program_of_the_same_user_cannot_look_into_a_child() -> None:
    names = ("read_victim_environment", "open_victim_memory", "read_victim_memory", "trace_victim")
    with (
        child(account=NOBODY) as hidden,
        child(account=NOBODY, enter=False) as visible,
        child(account=NOBODY, enter=False) as looker,
    ):
        into_hidden = looker.probe({"victim_pid": hidden.process.pid}, *names)
        into_visible = looker.probe({"victim_pid": visible.process.pid}, *names)
    assert into_visible["read_victim_environment"].allowed
    assert not any(outcome.allowed for outcome in into_hidden.values())


def test_a_child_with_a_thread_already_running_refuses_to_serve() -> None:
    with child(thread_before=True) as one:
        assert "2 threads run already" in one.hello["error"]


def test_a_child_that_inherited_a_file_it_was_not_named_refuses_to_serve() -> None:
    with tempfile.TemporaryFile() as leaked:
        number = leaked.fileno()
        with child(pass_fds=(number,), descriptors=[]) as one:
            assert f"{number} (" in one.hello["error"]
        with child(pass_fds=(number,), descriptors=[number]) as one:
            assert one.hello["walls"]


def test_a_child_whose_parent_is_not_the_one_it_was_told_refuses_to_serve() -> None:
    with child(parent_pid=1 if os.getpid() != 1 else 2) as one:
        assert "is gone" in one.hello["error"]
    with child(parent_pid=os.getpid()) as one:
        assert "ends with its parent" in one.hello["walls"]["stands"]


def test_an_inspector_has_the_same_walls() -> None:
    with made_targets(None) as targets, child(str(targets["home"]), kind="inspector") as one:
        outcomes = one.probe(targets, "connect_tcp4", "read_home_file", "fork")
    assert not any(outcome.allowed for outcome in outcomes.values())


def test_an_extra_call_opens_that_one_and_nothing_else() -> None:
    with made_targets(None) as targets, child(str(targets["home"]), extra_calls=["memfd_create"]) as one:
        outcomes = one.probe(targets, "memory_file", "fork", "truncate_model", "connect_tcp4")
    assert {name for name, outcome in outcomes.items() if outcome.allowed} == {"memory_file"}


def test_a_child_may_still_abort() -> None:
    with child() as one:
        one.send(do="abort")
        assert one.process.wait() == -signal.SIGABRT


def test_a_child_ends_when_its_parent_is_killed() -> None:
    python = shutil.which(sys.executable)
    assert python
    options = json.dumps({"root": str(ROOT), "home": "/nonexistent"})
    # The parent hands on its own output and then only waits; both inputs stay open here, so no end of file ends the
    # child.
    code = f"import subprocess, sys; subprocess.run([{python!r}, '-I', {str(CHILD)!r}, {options!r}])"
    parent = subprocess.Popen([python, "-I", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert json.loads(parent.stdout.readline())["walls"]
    parent.kill()
    assert parent.stdout.read() == ""  # the last holder of the other end is gone
    parent.communicate()
