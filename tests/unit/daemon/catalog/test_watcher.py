"""Changes in a folder are told, and a folder that cannot be watched is named with the reason."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, SimpleQueue

import pytest

from enclaved.daemon.catalog import watcher as watching
from enclaved.daemon.catalog.watcher import Watcher, network_problem, read_mounts
from enclaved.plugin.hookspecs import WatchedFolder

SECONDS = 20.0

# watchdog finds a folder that was just made by its event and by its walk, and warns of the second time; it goes on.
pytestmark = pytest.mark.filterwarnings("ignore:Callback with id .* already exists:RuntimeWarning")


class Watching:
    """A watcher and what it tells."""

    def __init__(self) -> None:
        self.told: SimpleQueue[str] = SimpleQueue()
        self.watcher = Watcher(self.told.put)

    def wait(self, source: str = "one") -> None:
        """Until a change is told."""
        assert self.told.get(timeout=SECONDS) == source
        self.drain()

    def drain(self) -> None:
        while True:
            try:
                self.told.get(timeout=0.7)
            except Empty:
                return


@pytest.fixture
def watch() -> Iterator[Watching]:
    watching = Watching()
    yield watching
    watching.watcher.close()


def test_what_changes_a_listing_is_told_and_reading_is_not(watch: Watching, tmp_path: Path) -> None:
    assert [each.problem for each in watch.watcher.watch("one", [WatchedFolder(tmp_path)])] == [None]
    file, deep = tmp_path / "a", tmp_path / "b" / "c"
    file.write_bytes(b"x")
    watch.wait()
    deep.mkdir(parents=True)
    watch.wait()
    (deep / "d").write_bytes(b"x")
    watch.wait()
    with file.open("ab") as written:
        written.write(b"y")
    watch.wait()
    file.rename(deep / "a")
    watch.wait()
    (deep / "a").read_bytes()
    list(os.scandir(tmp_path))
    (deep / "d").unlink()  # the only change since then
    assert watch.told.get(timeout=SECONDS) == "one"


def test_the_same_folders_again_change_nothing_and_others_replace_them(watch: Watching, tmp_path: Path) -> None:
    one, two = tmp_path / "1", tmp_path / "2"
    one.mkdir()
    two.mkdir()
    for _ in range(2):
        watch.watcher.watch("one", [WatchedFolder(one)])
    watch.watcher.watch("two", [WatchedFolder(two)])
    watch.watcher.watch("one", [])
    (one / "a").write_bytes(b"x")
    (two / "a").write_bytes(b"x")
    watch.wait("two")
    watch.watcher.watch("one", [WatchedFolder(two)])
    (two / "b").write_bytes(b"x")
    assert "one" in {watch.told.get(timeout=SECONDS) for _ in range(3)}


def test_a_folder_that_was_replaced_is_watched_anew(watch: Watching, tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    watch.watcher.watch("one", [WatchedFolder(folder)])
    folder.rename(tmp_path / "old")
    folder.mkdir()
    watch.watcher.watch("one", [WatchedFolder(folder)])
    watch.drain()
    (folder / "a").write_bytes(b"x")
    watch.wait()


def test_a_folder_that_is_not_there_is_told_with_the_reason(watch: Watching, tmp_path: Path) -> None:
    (found,) = watch.watcher.watch("one", [WatchedFolder(tmp_path / "none")])
    assert found.path == str(tmp_path / "none")
    assert found.problem == "No such file or directory"


def test_where_the_system_watches_no_more_the_reason_is_told(
    watch: Watching, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from watchdog.observers import Observer

    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "inotify watch limit reached")

    monkeypatch.setattr(Observer, "schedule", refuse)
    (found,) = watch.watcher.watch("one", [WatchedFolder(tmp_path)])
    assert found.problem == "inotify watch limit reached"


@pytest.mark.parametrize(
    ("path", "expected"),
    [("/", None), ("/home/me", None), ("/net/models/deep", "nfs4"), ("/my disk/x", "fuse.sshfs"), ("/usb/x", None)],
)
def test_network_mounts_are_known_by_their_file_system(
    path: str, expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(
        "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
        "30 22 0:40 / /net/models rw,relatime shared:2 - nfs4 server:/models rw\n"
        "31 22 0:41 / /my\\040disk rw - fuse.sshfs me@there: rw\n"
        "32 22 0:42 / /usb rw - fuseblk /dev/sdb1 rw\n"
        "nonsense\n"
    )
    monkeypatch.setattr(watching, "MOUNTS", table)
    problem = network_problem(Path(path), read_mounts())
    assert (problem is None) == (expected is None)
    assert expected is None or expected in (problem or "")
