"""Finding the daemon of a home, and starting one.

The clients call `running` and `start_daemon` before they connect. Nothing here speaks the protocol: whether a daemon
lives is told by a plain connection to its socket, whether it started by one line from a pipe.
"""

from __future__ import annotations

import errno
import json
import os
import selectors
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from enclave.exceptions import DaemonUnavailableError, EnclaveError, error_for
from enclave.paths import PathError, Places, private_folder, read_state, socket_path

START_SECONDS = 10.0
"""A cold start of Python with ZeroMQ takes 0.3 s here; ten are for a slow disk."""

CONNECT_SECONDS = 2.0
"""A Unix connect is immediate unless the daemon's backlog is full."""

READY_BYTES_MAX = 64 * 1024
LOG_TAIL_BYTES = 2048


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a live daemon listens."""

    address: str
    """For ZeroMQ's connect."""
    pid: int | None = None


def running(where: Places) -> Endpoint | None:
    """The daemon that the state file names, if something listens there; None when it is stale or missing."""
    state = read_state(where)
    if state is None or not _listens(state.endpoint):
        return None
    return Endpoint(state.endpoint, state.pid)


def _listens(address: str) -> bool:
    path = socket_path(address)
    if path is None:
        return _listens_tcp(address)
    if not hasattr(socket, "AF_UNIX"):
        return path.exists()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(CONNECT_SECONDS)
        try:
            probe.connect(str(path))
        except OSError as error:
            # A full backlog is a busy daemon, not a dead one.
            return error.errno == errno.EAGAIN
    return True


def _listens_tcp(address: str) -> bool:
    scheme, _, rest = address.partition("://")
    host, _, port = rest.rpartition(":")
    if scheme != "tcp" or not port.isdigit():
        return False
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS):
            return True
    except (OSError, OverflowError):
        return False


def find_daemon(where: Places, environment: Mapping[str, str]) -> str:
    """The program to start: ENCLAVE_DAEMON, else the state file's, else PATH's, else the one beside this interpreter.

    Raises DaemonUnavailableError when there is none.
    """
    chosen = environment.get("ENCLAVE_DAEMON", "")
    if chosen:
        found = shutil.which(chosen, path=environment.get("PATH"))
        if found is None:
            raise DaemonUnavailableError(
                f"ENCLAVE_DAEMON is {chosen!r}, which is not a program", hint="Correct the variable, or unset it."
            )
        return str(Path(found).absolute())
    state = read_state(where)
    if state is not None and state.executable and os.access(state.executable, os.X_OK):
        return state.executable
    found = shutil.which("enclaved", path=environment.get("PATH"))
    if found is not None:
        return str(Path(found).absolute())
    name = "enclaved.exe" if sys.platform == "win32" else "enclaved"
    beside = Path(sys.executable).with_name(name)
    if os.access(beside, os.X_OK):
        return str(beside)
    raise DaemonUnavailableError(
        "no daemon is running, and the program `enclaved` was not found",
        hint="Install the distribution `enclaved`, or point ENCLAVE_DAEMON to the program.",
    )


def start_daemon(where: Places, environment: Mapping[str, str], timeout: float = START_SECONDS) -> Endpoint:
    """Start the daemon of this home, detached, and wait until it listens; another's success counts as well.

    Raises DaemonUnavailableError, or the error that the daemon itself reports. A daemon that is merely slow is left
    alone: the next call finds it.
    """
    deadline = time.monotonic() + timeout
    try:
        private_folder(where.run)
        with _starting(where, timeout):
            found = running(where)
            if found is not None:
                return found
            return _spawn(where, environment, max(0.0, deadline - time.monotonic()))
    except PathError as error:
        raise DaemonUnavailableError(error.message, hint=error.hint or None) from error
    except OSError as error:
        raise DaemonUnavailableError(f"the daemon could not be started: {error}") from error


@contextmanager
def _starting(where: Places, timeout: float) -> Generator[None]:
    # Ten windows of an editor that open together start one daemon, not ten that race for its lock. Who was stopped
    # while it held this one must not hold the others up: after half of the time they go on without it.
    if sys.platform == "win32":
        yield
        return
    release = threading.Event()
    held = threading.Event()
    threading.Thread(target=_hold, args=(where.starting_file, held, release), daemon=True).start()
    held.wait(timeout / 2)
    try:
        yield
    finally:
        release.set()


def _hold(path: Path, held: threading.Event, release: threading.Event) -> None:
    import fcntl

    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError:
        held.set()  # the daemon's own locks decide
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        held.set()
        release.wait()
    finally:
        os.close(descriptor)


def _spawn(where: Places, environment: Mapping[str, str], timeout: float) -> Endpoint:
    program = find_daemon(where, environment)
    child_environment = dict(environment)
    if where.portable:
        child_environment["ENCLAVE_HOME"] = str(where.home)  # it may have been relative, and the daemon lives in /
    where.logs.mkdir(parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
    log = os.open(where.log_file, flags, 0o600)
    log_start_bytes = os.fstat(log).st_size
    ready, ready_child = os.pipe()
    try:
        try:
            process = subprocess.Popen(
                [program, "--ready-fd", str(ready_child)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=child_environment,
                pass_fds=(ready_child,),
                start_new_session=True,
            )
        finally:
            os.close(log)
            os.close(ready_child)
        # Takes the exit status when the daemon ends before this process, so that no zombie stays.
        threading.Thread(target=process.wait, name="enclaved-reaper", daemon=True).start()
        line = _read_line(ready, timeout)
    finally:
        os.close(ready)
    if line is None:
        raise DaemonUnavailableError(
            f"the daemon (pid {process.pid}) was started but not ready within {timeout:.0f} s",
            hint=f"Look into {where.log_file}.",
            detail=_log_tail(where, log_start_bytes),
        )
    return _understand(line, where, log_start_bytes)


def wait_until_ended(where: Places) -> None:
    """Waits until the daemon of this home has ended, after it was told to; returns at once when there is none."""
    if sys.platform == "win32" or not where.lock_file.exists():
        return
    import fcntl

    with where.lock_file.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)


def _read_line(descriptor: int, timeout: float) -> bytes | None:
    """What comes before the first newline or the end; None when neither came in time."""
    deadline = time.monotonic() + timeout
    collected = b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while b"\n" not in collected and len(collected) < READY_BYTES_MAX:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return None
            piece = os.read(descriptor, 4096)
            if not piece:
                break
            collected += piece
    return collected.partition(b"\n")[0]


def _understand(line: bytes, where: Places, log_start_bytes: int) -> Endpoint:
    values: object = None
    with suppress(ValueError, RecursionError):
        values = json.loads(line)
    report = cast("dict[str, object]", values) if isinstance(values, dict) else {}
    address, pid, error = report.get("endpoint"), report.get("pid"), report.get("error")
    if isinstance(address, str):
        return Endpoint(address, pid if isinstance(pid, int) else None)
    tail = _log_tail(where, log_start_bytes)
    if isinstance(error, dict):
        raise _reported(cast("dict[str, object]", error), tail)
    last = tail.strip().rpartition("\n")[2]
    raise DaemonUnavailableError(
        "the daemon ended while it started" + (f": {last[:200]}" if last else ""),
        hint=f"Look into {where.log_file}, or start `enclaved` in a terminal.",
        detail=tail,
    )


def _reported(error: Mapping[str, object], tail: str) -> EnclaveError:
    code, message, hint = error.get("code"), error.get("message"), error.get("hint")
    told = [said for said in (message, hint) if isinstance(said, str) and said]
    tail = "\n".join(row for row in tail.splitlines() if not any(said in row for said in told))
    return error_for(
        code if isinstance(code, str) else "daemon_unavailable",
        message if isinstance(message, str) else "",
        hint=hint if isinstance(hint, str) else None,
        detail=tail,
    )


def _log_tail(where: Places, start_bytes: int) -> str:
    """The end of what was logged since `start_bytes`; empty when nothing was."""
    try:
        with where.log_file.open("rb") as file:
            end_bytes = file.seek(0, os.SEEK_END)
            file.seek(max(start_bytes, end_bytes - LOG_TAIL_BYTES))
            return file.read(LOG_TAIL_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
