"""Folders that are watched by what the system tells of changes (watchdog), and those that have to be looked at instead.

Methods are called in a thread, one at a time: to watch a large folder takes a while, and a disk may not answer.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from enclaved.plugin.hookspecs import WatchedFolder

if TYPE_CHECKING:
    from watchdog.observers.api import BaseObserver, ObservedWatch

MOUNTS = Path("/proc/self/mountinfo")
NETWORK_FILE_SYSTEMS = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "drvfs", "gfs2", "glusterfs", "lustre", "ncpfs", "nfs", "nfs4", "smb3"}
    | {"smbfs", "vboxsf", "virtiofs", "vmhgfs"}
)
"""Where others may change files without this system's knowing; so are all of FUSE but `fuseblk`, a local disk."""

_Key = tuple[str, str, bool, int, int]
"""Source, path, whether deep, device and inode."""


@dataclass(frozen=True)
class Watched:
    """How a folder is watched."""

    path: str
    problem: str | None = None
    """Why the system tells nothing of its changes, or not of all; None when it does."""


class Watcher:
    """Tells of each source when something changes in its folders."""

    def __init__(self, changed: Callable[[str], object]) -> None:
        """`changed(source)` is called in a thread of the watcher's own."""
        self._changed = changed
        self._observer: BaseObserver | None = None
        self._watches: dict[_Key, ObservedWatch] = {}

    def watch(self, source: str, folders: Sequence[WatchedFolder]) -> list[Watched]:
        """From now on these are the folders of a source; those that are watched already go on being watched."""
        mounts = read_mounts()
        wanted: dict[_Key, WatchedFolder] = {}
        found: list[Watched] = []
        for folder in folders:
            try:
                status = folder.path.stat()
                wanted[source, str(folder.path), folder.deep, status.st_dev, status.st_ino] = folder
            except OSError as error:
                found.append(Watched(str(folder.path), error.strerror or str(error)))
        for key in [key for key in self._watches if key[0] == source and key not in wanted]:
            self._unwatch(key)
        for key, folder in wanted.items():
            found.append(Watched(str(folder.path), self._watch(key, folder) or network_problem(folder.path, mounts)))
        return found

    def close(self) -> None:
        """Watches nothing any more."""
        self._watches.clear()
        if self._observer is not None:
            self._observer.stop()
            self._observer = None

    def _watch(self, key: _Key, folder: WatchedFolder) -> str | None:
        """Why a folder cannot be watched; None when it is."""
        if key in self._watches:
            return None
        from watchdog.events import FileSystemEvent, FileSystemEventHandler

        source, changed = key[0], self._changed

        class Handler(FileSystemEventHandler):
            def dispatch(self, event: FileSystemEvent) -> None:
                changed(source)

        try:
            self._watches[key] = self._running().schedule(
                Handler(), str(folder.path), recursive=folder.deep, event_filter=_events(), follow_symlink=True
            )
        except OSError as error:
            return error.strerror or str(error)
        return None

    def _unwatch(self, key: _Key) -> None:
        watch = self._watches.pop(key)
        # The same folder may be watched under another key.
        if self._observer is not None and watch not in self._watches.values():
            self._observer.unschedule(watch)

    def _running(self) -> BaseObserver:
        if self._observer is None:
            from watchdog.observers import Observer  # only where there are folders: it would slow every start

            self._observer = Observer()
            self._observer.daemon = True
            self._observer.start()
        return self._observer


def _events() -> list[type]:
    """What says that a listing may be different now; where the system tells when a file is closed, that is enough."""
    from watchdog import events

    kinds: list[type] = [
        events.FileCreatedEvent,
        events.FileDeletedEvent,
        events.FileMovedEvent,
        events.FileClosedEvent,
        events.DirCreatedEvent,
        events.DirDeletedEvent,
        events.DirMovedEvent,
    ]
    return kinds if sys.platform == "linux" else [*kinds, events.FileModifiedEvent]


def read_mounts() -> Mapping[str, str]:
    """The kind of file system by mount point, as Linux tells it; elsewhere nothing is known. Format: proc(5)."""
    try:
        lines = MOUNTS.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return {}
    mounts: dict[str, str] = {}
    for line in lines:
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")[0]
        if len(fields) > 4 and kind:
            mounts[fields[4].encode().decode("unicode_escape") if "\\" in fields[4] else fields[4]] = kind
    return mounts


def network_problem(path: Path, mounts: Mapping[str, str]) -> str | None:
    """Why changes below a folder may go unnoticed by this system."""
    resolved = path.resolve()
    kind = next((mounts[str(each)] for each in (resolved, *resolved.parents) if str(each) in mounts), None)
    if kind is None or (kind not in NETWORK_FILE_SYSTEMS and not kind.startswith("fuse.")):
        return None
    return f"it is on a file system ({kind}) that others may change"
