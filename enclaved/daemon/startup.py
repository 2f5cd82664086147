"""One daemon a home: the locks taken before the socket is bound, and the word to whoever waits for the start.

A second bind to a live ipc path succeeds and takes it over, so the socket proves nothing; a lock does. It is never
removed, and falls by itself when its holder dies.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue

from enclave.paths import PathError, Places, private_folder, read_state, socket_path

DESCRIPTORS_MAX = 65_536
"""Some thousand connections and children, with room; the hard limit may be a billion, and tables grow with it."""
STARTING_SECONDS_MAX = 20.0
"""A start takes a quarter of a second; a daemon that was stopped in the middle of one must not hold others up."""


class AlreadyRunningError(Exception):
    """Another daemon owns this home."""

    def __init__(self, places: Places) -> None:
        state = read_state(places)
        who = f" (pid {state.pid}, version {state.version})" if state is not None else ""
        super().__init__(f"enclaved is already running{who} for {places.home}")
        self.hint = f"`kill {state.pid}` ends it." if state is not None else ""
        self.pid = state.pid if state is not None else None
        self.endpoint = state.endpoint if state is not None else None


class HomeLock:
    """Holds a home for the life of this process."""

    def __init__(self, places: Places) -> None:
        """Waits while another daemon of this home is starting, then takes the home.

        Raises AlreadyRunningError (its endpoint can be used by then), PathError, OSError.
        """
        private_folder(places.run)
        starting = _lock_within(places.run / "ready.lock", STARTING_SECONDS_MAX)
        if starting is None:
            raise AlreadyRunningError(places)
        self._starting = starting
        try:
            self._life = _lock(places.lock_file, wait=False)
        except BlockingIOError:
            os.close(self._starting)
            raise AlreadyRunningError(places) from None

    def is_ready(self) -> None:
        """Clients can connect from now on: lets whoever waits for this start go on."""
        os.close(self._starting)


def _lock_within(path: Path, seconds: float) -> int | None:
    """The descriptor of the lock, once it is free; None when it is not within so many seconds."""
    taken: SimpleQueue[int | OSError] = SimpleQueue()

    def take() -> None:
        try:
            taken.put(_lock(path, wait=True))
        except OSError as error:
            taken.put(error)

    with suppress(BlockingIOError):
        return _lock(path, wait=False)
    threading.Thread(target=take, daemon=True).start()
    try:
        found = taken.get(timeout=seconds)
    except Empty:
        return None
    if isinstance(found, OSError):
        raise found
    return found


def _lock(path: Path, *, wait: bool) -> int:
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    descriptor = os.open(path, flags, 0o600)
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        return descriptor
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def ready_pipe(descriptor: int | None) -> Generator[ReadyPipe, None, None]:
    """The pipe on which a client waits for this daemon's start; closed at the end whatever happens."""
    pipe = ReadyPipe(descriptor)
    try:
        yield pipe
    finally:
        pipe.close()


def raise_descriptor_limit() -> None:
    """As many open files as this user may have: each connection and each child takes some."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_MAX if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS_MAX)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def make_data_folder(path: Path) -> None:
    """The folder for what outlives a restart, made if it is missing. Others may look into it, but not change it.

    Raises PathError.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = path.stat().st_mode
    except OSError as error:
        raise PathError(f"cannot make the folder {path}: {error.strerror}", "Choose another ENCLAVE_HOME.") from error
    if sys.platform != "win32" and mode & 0o022:
        raise PathError(f"others may change what is in {path}", f"chmod go-w '{path}'")


def remove_stale_socket(places: Places) -> None:
    """Removes what a daemon that was killed left of its socket. Only for whoever holds the home's lock."""
    state = read_state(places)
    path = socket_path(state.endpoint) if state is not None else None
    if path is not None:
        with suppress(OSError):
            path.unlink(missing_ok=True)
            remove_socket_folder(path, places)


def remove_socket_folder(path: Path, places: Places) -> None:
    """Removes the folder of a socket that did not fit into the home's own, with the last socket in it."""
    if path.parent != places.run:
        with suppress(OSError):
            path.parent.rmdir()


class ReadyPipe:
    """Tells one JSON line: `{"endpoint", "pid"}`, or `{"error": {"code", "message", "hint"}}`."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    def ready(self, endpoint: str, pid: int) -> None:
        """Clients can connect there."""
        self._tell({"endpoint": endpoint, "pid": pid})

    def failed(self, code: str, message: str, hint: str = "") -> None:
        """There will be no daemon."""
        self._tell({"error": {"code": code, "message": message, "hint": hint}})

    def close(self) -> None:
        """Closes the pipe; by itself it tells that the daemon ended without a word."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _tell(self, what: dict[str, object]) -> None:
        if self._descriptor is not None:
            # Whoever started this daemon may have gone; it serves all the same.
            with suppress(BrokenPipeError):
                os.write(self._descriptor, json.dumps(what).encode() + b"\n")
            self.close()
