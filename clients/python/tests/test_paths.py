"""Where everything lies, and the checks on what must be private."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from enclave.paths import (
    SOCKET_PATH_BYTES_MAX,
    DaemonState,
    PathError,
    Places,
    choose_endpoint,
    fits_socket,
    places,
    private_folder,
    read_state,
    socket_path,
    write_state,
)

HOME = Path("/home/ada")
NOT_ROOT = getattr(os, "getuid", lambda: 1)() != 0
STATE = DaemonState(pid=1, version="1", protocol=1, endpoint="ipc:///x", started=2.5, executable="/bin/x")


def folders(where: Places) -> Iterator[Path]:
    for field in fields(where):
        value = getattr(where, field.name)
        if isinstance(value, Path):
            yield value


def test_with_enclave_home_everything_is_under_it() -> None:
    where = places({"ENCLAVE_HOME": "/srv/e", "XDG_CONFIG_HOME": "/elsewhere", "HOME": str(HOME)})
    assert where.portable
    assert all(folder.is_relative_to("/srv/e") for folder in folders(where))
    assert where.config_file == Path("/srv/e/config/enclave.toml")


def test_a_relative_home_is_taken_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert places({"ENCLAVE_HOME": "a/../b"}).home == tmp_path / "b"


def test_an_empty_home_is_none() -> None:
    assert not places({"ENCLAVE_HOME": "", "HOME": str(HOME)}).portable


def test_linux_follows_the_xdg_folders_and_ignores_relative_ones() -> None:
    environment = {"HOME": str(HOME), "XDG_CONFIG_HOME": "/c", "XDG_DATA_HOME": "relative", "XDG_CACHE_HOME": "/k"}
    where = places(environment, platform="linux")
    assert (where.config_file, where.cache) == (Path("/c/enclave/enclave.toml"), Path("/k/enclave"))
    assert where.models == HOME / ".local/share/enclave/models"
    assert where.run == HOME / ".local/state/enclave/run"


def test_a_runtime_folder_changes_none_of_the_places() -> None:
    """A login with one and a cron job without must find the same lock."""
    plain = places({"HOME": str(HOME)}, platform="linux")
    assert places({"HOME": str(HOME), "XDG_RUNTIME_DIR": "/run/user/7"}, platform="linux") == plain


@pytest.mark.parametrize(
    ("platform", "part"), [("darwin", "Library/Application Support"), ("win32", "AppData/Local"), ("linux", ".local")]
)
def test_each_platform_has_its_own_places_all_in_the_users_home(platform: str, part: str) -> None:
    where = places({"HOME": str(HOME)}, platform=platform, user_home=HOME)
    assert all(folder.is_relative_to(HOME) for folder in folders(where))
    assert part in str(where.data)


# --- private folders ---


def test_a_private_folder_is_made_with_0700_and_may_be_there_already(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "run"
    assert private_folder(private_folder(folder)) == folder
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o701, 0o777])
def test_a_folder_that_others_may_enter_is_refused_with_the_command_to_mend_it(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(PathError) as caught:
        private_folder(folder)
    assert caught.value.hint == f"chmod 700 '{folder}'"
    assert folder.stat().st_mode & 0o777 == mode


def test_a_link_to_a_private_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(private_folder(tmp_path / "real"))
    with pytest.raises(PathError, match="link"):
        private_folder(tmp_path / "link")


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").touch(0o600)
    with pytest.raises(PathError, match="not a folder"):
        private_folder(tmp_path / "run")


@pytest.mark.skipif(NOT_ROOT, reason="only root can make a folder that belongs to another")
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    folder = private_folder(tmp_path / "run")
    os.chown(folder, 12345, -1)
    with pytest.raises(PathError, match="12345"):
        private_folder(folder)


def test_a_folder_that_is_not_to_be_made_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(PathError):
        private_folder(tmp_path / "none", create=False)


# --- the socket ---


def home_of_length(base: Path, length: int) -> Path:
    home = base
    while len(os.fsencode(home)) < length:
        room = length - len(os.fsencode(home)) - 1
        home = home / ("x" * max(1, min(50, room)))
    return home


def test_a_short_home_has_its_socket_inside() -> None:
    where = places({"ENCLAVE_HOME": "/srv/e"})
    assert fits_socket(where.socket_file)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A private folder with a path short enough for sockets, which tmp_path may not have; nothing else is used."""
    monkeypatch.setattr("enclave.paths.RUNTIME_ROOT", "/nonexistent")
    with tempfile.TemporaryDirectory(prefix="e") as folder:
        yield Path(folder)


def test_a_home_of_150_bytes_gets_a_socket_that_can_be_bound(tmp_path: Path, short: Path) -> None:
    home = home_of_length(tmp_path, 150)
    assert len(os.fsencode(home)) >= 150
    where = places({"ENCLAVE_HOME": str(home)})
    path = socket_path(choose_endpoint(where, {"XDG_RUNTIME_DIR": str(short), "HOME": str(tmp_path)}))
    assert path is not None
    assert path.parent == short / "enclave"
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))
    assert where.run.stat().st_mode & 0o777 == 0o700


def test_two_long_homes_have_two_sockets_and_the_same_home_the_same(tmp_path: Path, short: Path) -> None:
    homes = [places({"ENCLAVE_HOME": str(home_of_length(tmp_path / name, 150))}) for name in "ab"]
    environment = {"XDG_RUNTIME_DIR": str(short), "HOME": str(short)}
    first, second, again = (choose_endpoint(where, environment) for where in (*homes, homes[0]))
    assert first == again
    assert first != second


@pytest.mark.parametrize("runtime", ["", "relative", "open", "missing"])
def test_without_a_private_runtime_folder_the_users_own_state_folder_is_taken(
    tmp_path: Path, short: Path, runtime: str
) -> None:
    (short / "open").mkdir()
    (short / "open").chmod(0o755)
    where = places({"ENCLAVE_HOME": str(home_of_length(tmp_path, 150))})
    value = str(short / runtime) if runtime in ("open", "missing") else runtime
    path = socket_path(choose_endpoint(where, {"XDG_RUNTIME_DIR": value, "HOME": str(short)}))
    assert path is not None
    assert path.parent == short / ".local" / "state" / "enclave" / "run"
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_as_a_last_resort_the_socket_lies_in_a_fresh_private_folder(
    tmp_path: Path, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(short))
    where = places({"ENCLAVE_HOME": str(home_of_length(tmp_path, 150))})
    path = socket_path(choose_endpoint(where, {"HOME": str(home_of_length(tmp_path, 150))}))
    assert path is not None
    assert path.parent.parent == short
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX


@pytest.mark.parametrize(
    ("endpoint", "path"), [("ipc:///a/b", Path("/a/b")), ("tcp://127.0.0.1:1", None), ("ipc://a", None), ("/a", None)]
)
def test_only_an_ipc_endpoint_has_a_file(endpoint: str, path: Path | None) -> None:
    assert socket_path(endpoint) == path


# --- the state file ---


@pytest.fixture
def where(tmp_path: Path) -> Places:
    made = places({"ENCLAVE_HOME": str(tmp_path / "home")})
    private_folder(made.run)
    return made


def test_the_state_file_gives_back_what_was_written_and_is_private(where: Places) -> None:
    write_state(where, STATE)
    assert read_state(where) == STATE
    assert where.state_file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in where.run.iterdir()] == ["daemon.json"]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\xfe", b'{"pid": 1}', b"[" * 50_000, json.dumps({"pid": "1"}).encode()],
    ids=["empty", "cut", "array", "no text", "partial", "deep", "wrong type"],
)
def test_a_state_file_that_makes_no_sense_is_none(where: Places, content: bytes) -> None:
    where.state_file.write_bytes(content)
    assert read_state(where) is None


def test_no_state_file_is_none(where: Places) -> None:
    assert read_state(where) is None
