"""Where everything of Enclave lies: configuration, data, models, logs, sockets. The daemon and its clients agree here.

`places` computes the folders from an environment mapping and touches nothing. `private_folder` makes and checks a
folder that must be the user's alone, `choose_endpoint` picks the daemon's socket, and `write_state`/`read_state` are
the file by which clients find it. Nothing here opens a socket.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

SOCKET_PATH_BYTES_MAX = 103
"""sun_path holds 104 bytes on macOS and 108 on Linux, one of them the final zero; the smaller one goes everywhere."""

RUNTIME_ROOT = "/run/user"
"""Where systemd keeps a private folder for each user who is logged in."""

STATE_BYTES_MAX = 64 * 1024


class PathError(Exception):
    """A folder cannot be used as it is; `hint` is what to do about it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Places:
    """Absolute paths; none of them need exist."""

    home: Path
    """ENCLAVE_HOME, else the data folder: its path tells two daemons apart."""
    config: Path
    config_file: Path
    data: Path
    """What must outlive a restart: the catalog, the ledger, measured figures."""
    cache: Path
    """What may be deleted at any time."""
    models: Path
    logs: Path
    log_file: Path
    """The daemon's own words, and whatever ends up on its stdout and stderr."""
    run: Path
    """0700: the lock, the state file and, if its path is short enough, the socket."""
    lock_file: Path
    """Held by the daemon while it lives."""
    starting_file: Path
    """Held by a client while it starts a daemon, so that two clients start one."""
    state_file: Path
    """Says where the daemon is; may be stale."""
    socket_file: Path
    """The socket's place when the path is short enough; see choose_endpoint."""
    portable: bool
    """Whether ENCLAVE_HOME holds everything."""


def places(environment: Mapping[str, str], *, platform: str = sys.platform, user_home: Path | None = None) -> Places:
    """The places for an environment (os.environ at the edge). With ENCLAVE_HOME everything is under it.

    A relative ENCLAVE_HOME is taken from the current folder; a relative XDG folder is ignored, as its specification
    says. `user_home` replaces the user's home folder.
    """
    portable = environment.get("ENCLAVE_HOME", "")
    if portable:
        home = Path(os.path.abspath(Path(portable).expanduser()))  # noqa: PTH100  resolve() would follow links
        return _lay_out(home, home / "config", home / "data", home / "cache", home / "logs", home / "run", True)
    user = user_home if user_home is not None else _user_home(environment)
    if platform == "darwin":
        support = user / "Library" / "Application Support" / "Enclave"
        caches = user / "Library" / "Caches" / "Enclave"
        logs = user / "Library" / "Logs" / "Enclave"
        return _lay_out(support, support, support, caches, logs, support / "run", False)
    if platform == "win32":
        local = _absolute(environment, "LOCALAPPDATA", user / "AppData" / "Local") / "Enclave"
        return _lay_out(local, local, local / "data", local / "cache", local / "logs", local / "run", False)
    config = _absolute(environment, "XDG_CONFIG_HOME", user / ".config") / "enclave"
    data = _absolute(environment, "XDG_DATA_HOME", user / ".local" / "share") / "enclave"
    cache = _absolute(environment, "XDG_CACHE_HOME", user / ".cache") / "enclave"
    state = _absolute(environment, "XDG_STATE_HOME", user / ".local" / "state") / "enclave"
    # Not the runtime folder: it vanishes at logout and differs between a login and a cron job, and both must find
    # the same lock and state file. The socket itself may lie elsewhere.
    return _lay_out(data, config, data, cache, state / "logs", state / "run", False)


def _lay_out(home: Path, config: Path, data: Path, cache: Path, logs: Path, run: Path, portable: bool) -> Places:
    return Places(
        home=home,
        config=config,
        config_file=config / "enclave.toml",
        data=data,
        cache=cache,
        models=(home if portable else data) / "models",
        logs=logs,
        log_file=logs / "enclaved.log",
        run=run,
        lock_file=run / "enclaved.lock",
        starting_file=run / "starting.lock",
        state_file=run / "daemon.json",
        socket_file=run / "enclaved.sock",
        portable=portable,
    )


def _user_home(environment: Mapping[str, str]) -> Path:
    name = "USERPROFILE" if sys.platform == "win32" else "HOME"
    value = environment.get(name, "")
    return Path(value) if os.path.isabs(value) else Path.home()  # noqa: PTH117


def _absolute(environment: Mapping[str, str], name: str, default: Path) -> Path:
    value = environment.get(name, "")
    return Path(value) if os.path.isabs(value) else default  # noqa: PTH117


# --- private folders -------------------------------------------------------------------------------------------------


def private_folder(path: Path, *, create: bool = True) -> Path:
    """The folder, made with 0700 if it is missing, and checked to be the user's alone.

    Checked by descriptor, so that what is checked is what is there, and a link is refused. Wrong rights are not
    repaired in silence: raises PathError with the command that would.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        # No address, state file or message could hold it.
        readable = os.fsencode(path).decode("utf-8", "replace")
        raise PathError(f"the name of {readable} is not UTF-8", "Choose another ENCLAVE_HOME.") from None
    if create:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                path.mkdir(mode=0o700)
        except OSError as error:
            raise PathError(f"cannot make the folder {path}: {error.strerror}", _folder_hint(path)) from error
    if sys.platform == "win32":
        return path  # a user's LOCALAPPDATA is private by its inherited access list
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except NotADirectoryError:
        raise PathError(f"{path} is not a folder, or is a link", "Move it out of the way.") from None
    except OSError as error:
        raise PathError(f"cannot open the folder {path}: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if status.st_uid != os.getuid():
        raise PathError(f"{path} belongs to user {status.st_uid}, not to you ({os.getuid()})", "Choose another folder.")
    if stat.S_IMODE(status.st_mode) & 0o077:
        rights = f"{stat.S_IMODE(status.st_mode):04o}"
        raise PathError(f"others may enter {path} (its mode is {rights})", f"chmod 700 '{path}'")
    return path


def _folder_hint(path: Path) -> str:
    """What stands in the way of making a folder, as far as it can be told."""
    for parent in path.parents:
        if parent.is_dir():
            return f"You may not write in {parent}: choose another ENCLAVE_HOME, or change its rights."
        if parent.exists():
            return f"{parent} is a file: ENCLAVE_HOME must name a folder."
    return "Choose another ENCLAVE_HOME."


# --- the socket ------------------------------------------------------------------------------------------------------


def choose_endpoint(where: Places, environment: Mapping[str, str]) -> str:
    """The ZeroMQ address that a daemon of this home binds to; its folder exists and is private afterwards.

    The first that holds: `run/enclaved.sock` when its path is short enough for a socket; else a short name made of
    the home's hash in XDG_RUNTIME_DIR/enclave, /run/user/UID/enclave or ~/.local/state/enclave/run; else a fresh
    folder in the temporary one. Raises PathError when the home's own run folder is not private.
    """
    private_folder(where.run)
    if fits_socket(where.socket_file):
        return f"ipc://{where.socket_file}"
    name = hashlib.sha256(os.fsencode(where.home)).hexdigest()[:16] + ".sock"
    for folder in short_folders(environment):
        if not fits_socket(folder / name):
            continue
        with suppress(PathError):
            return f"ipc://{private_folder(folder) / name}"
    # mkdtemp makes 0700 under a name that nobody can guess beforehand; the state file tells the clients.
    return f"ipc://{Path(tempfile.mkdtemp(prefix='enclave-')) / name}"


def short_folders(environment: Mapping[str, str]) -> list[Path]:
    """Folders for sockets of homes with long paths, best first; the ones below a private runtime folder only."""
    result: list[Path] = []
    user = f"{RUNTIME_ROOT}/{os.getuid()}" if hasattr(os, "getuid") else ""
    for runtime in (environment.get("XDG_RUNTIME_DIR", ""), user):
        if os.path.isabs(runtime):  # noqa: PTH117
            with suppress(PathError):
                result.append(private_folder(Path(runtime), create=False) / "enclave")
    result.append(_user_home(environment) / ".local" / "state" / "enclave" / "run")
    return result


def fits_socket(path: Path) -> bool:
    """Whether the path is short enough for a Unix socket on every platform."""
    return len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX


def socket_path(endpoint: str) -> Path | None:
    """The file of an ipc endpoint; None for any other transport."""
    scheme, separator, rest = endpoint.partition("://")
    return Path(rest) if separator and scheme == "ipc" and rest.startswith("/") else None


# --- the state file --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DaemonState:
    """What the state file says of the daemon that wrote it."""

    pid: int
    version: str
    protocol: int
    endpoint: str
    started: float
    """Seconds since 1970."""
    executable: str | None = None
    """What to run to start it again."""


def write_state(where: Places, state: DaemonState) -> None:
    """Replace the state file in one step, so that a reader sees the old one or the new one. Raises OSError."""
    temporary = where.state_file.with_name(f"{where.state_file.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0), 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(asdict(state), file)
        temporary.replace(where.state_file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_state(where: Places) -> DaemonState | None:
    """The state file's words; None when there is none or it makes no sense. They may be of a daemon long dead."""
    try:
        with where.state_file.open("rb") as file:
            values: object = json.loads(file.read(STATE_BYTES_MAX))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None
    known = cast("dict[str, object]", values)
    pid, version, protocol = known.get("pid"), known.get("version"), known.get("protocol")
    endpoint, started, executable = known.get("endpoint"), known.get("started"), known.get("executable")
    if not (isinstance(pid, int) and isinstance(version, str) and isinstance(protocol, int)):
        return None
    if not (isinstance(endpoint, str) and isinstance(started, (int, float))):
        return None
    return DaemonState(
        pid, version, protocol, endpoint, float(started), executable if isinstance(executable, str) else None
    )
