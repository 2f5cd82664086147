"""The folders that the user added, kept in a file of their own beside the configuration, and given to the sources.

The file is TOML that a person can read, edit and share; the daemon reads it at its start and replaces it as a whole.
One that it cannot read is left as it is, and nothing can be added until somebody has corrected it.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from enclaved.daemon.catalog.looking import Looker
from enclaved.daemon.catalog.records import count_models_below
from enclaved.daemon.catalog.references import whole_path
from enclaved.daemon.catalog.store import Store
from enclaved.daemon.refusal import RefusalError

FILE_BYTES_MAX = 2**20
FOLDERS_MAX = 1000

_HEADING = "# Folders with models, as `enclave folder add` and `enclave folder remove` keep them.\n"


@dataclass(frozen=True)
class Folder:
    """A folder in which a source finds models."""

    path: str
    source: str
    is_added: bool
    """Whether the user added it; else the configuration names it, or a link in another folder leads there."""
    models: int
    problem: str | None
    """Why the system does not tell of all its changes, so that it is looked at from time to time instead."""


class Folders:
    """What `folders.list`, `folders.add` and `folders.remove` do."""

    def __init__(self, file: Path, looker: Looker, store: Store) -> None:
        self._file = file
        self._looker = looker
        self._store = store
        self._changing = asyncio.Lock()
        self._added: tuple[str, ...] = ()
        self.problem: str | None = None
        """Why the file could not be read."""

    def read(self) -> None:
        """Reads the file and gives the sources what it says, before they are looked at for the first time."""
        try:
            with self._file.open("rb") as opened:
                content = opened.read(FILE_BYTES_MAX + 1)
            self._added = folders_in(content)
        except FileNotFoundError:
            return
        except OSError as error:
            self.problem = f"{self._file} cannot be read: {error.strerror or error}"
        except ValueError as error:
            self.problem = f"{self._file} is not as it should be: {error}"
        self._give()

    async def list(self) -> list[Folder]:
        """The folders of all sources, with what they hold."""
        found: dict[tuple[str, str], str | None] = {}
        for source in self._looker.watched_sources:
            found |= {(source, each.path): each.problem for each in self._looker.watched_folders(source)}
        added = [(source, path) for source in self._looker.sources_with_folders for path in self._added]
        for each in added:
            found.setdefault(each)
        counts = await self._store.read(
            lambda connection: [count_models_below(connection, source, path) for source, path in found]
        )
        return [
            Folder(path, source, (source, path) in added, count, problem)
            for ((source, path), problem), count in zip(found.items(), counts, strict=True)
        ]

    async def add(self, path: str) -> Folder:
        """Has the sources look into this folder too, and says what they found there. One that is there already stays.

        Raises RefusalError: `bad_request` for what is no folder, `unsupported` where no source looks into folders,
        `disk_failed` where it cannot be remembered.
        """
        if not self._looker.sources_with_folders:
            hint = "`enclave plugins` shows what is installed."
            raise RefusalError("unsupported", "no installed source looks into folders", hint=hint)
        path = whole_path(path, "bad_request", field="path")
        async with self._changing:
            if path not in self._added:
                await asyncio.to_thread(_check, path)
                if len(self._added) >= FOLDERS_MAX:
                    raise RefusalError("bad_request", f"there are {FOLDERS_MAX:,} folders already", field="path")
                await self._change((*self._added, path))
            else:
                await self._look()
            return next(each for each in await self.list() if each.is_added and each.path == path)

    async def remove(self, path: str) -> None:
        """From now on the sources do not look into this folder. What lies in it stays as it is.

        Raises RefusalError (`bad_request`) for a folder that was not added, `disk_failed` as `add`.
        """
        path = whole_path(path, "bad_request", field="path")
        async with self._changing:
            if path not in self._added:
                raise self._not_added(path)
            await self._change(tuple(each for each in self._added if each != path))

    def _not_added(self, path: str) -> RefusalError:
        watched = (each.path for name in self._looker.watched_sources for each in self._looker.watched_folders(name))
        if path in watched:
            hint = "Take it out of the configuration's `folders`, or remove the link that leads there."
            return RefusalError("bad_request", f"{path} was not added by `enclave folder add`", hint=hint, field="path")
        hint = "`enclave folder list` shows the folders."
        return RefusalError("bad_request", f"{path} is none of the folders", hint=hint, field="path")

    async def _change(self, added: tuple[str, ...]) -> None:
        if self.problem is not None:
            raise RefusalError("disk_failed", self.problem, hint="Correct or remove the file, then restart the daemon.")
        writing = asyncio.ensure_future(asyncio.to_thread(_replace, self._file, text_of(added)))
        try:
            await asyncio.shield(writing)
        except OSError as error:
            raise RefusalError("disk_failed", f"{self._file} cannot be written: {error.strerror or error}") from error
        finally:
            # Who gives up meanwhile cannot stop the thread: what it writes is then true all the same.
            await asyncio.wait([writing])
            if writing.exception() is None:
                self._added = added
                self._give()
        await self._look()

    def _give(self) -> None:
        self._looker.give_folders(self._added)

    async def _look(self) -> None:
        for source in self._looker.sources_with_folders:
            await self._looker.look_at(source)


def folders_in(content: bytes) -> tuple[str, ...]:
    """What the file says. Raises ValueError with a reason for a person."""
    if len(content) > FILE_BYTES_MAX:
        raise ValueError(f"it has more than {FILE_BYTES_MAX:,} bytes")
    try:
        values = tomllib.loads(content.decode())
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    unknown = sorted(values.keys() - {"folders"})
    if unknown:
        raise ValueError(f"it has {unknown[0]!r}, which nobody knows; there is only `folders`")
    folders = values.get("folders", [])
    if not isinstance(folders, list) or not all(isinstance(each, str) for each in cast("list[object]", folders)):
        raise ValueError('`folders` must be a list of texts, such as ["/data/models"]')
    for each in cast("list[str]", folders):
        if not Path(each).is_absolute():
            raise ValueError(f"{each!r} must be a whole path, from /")
    return tuple(dict.fromkeys(os.path.normpath(each) for each in cast("list[str]", folders)))


def text_of(folders: Sequence[str]) -> str:
    """The file that says so."""
    lines = "".join(f"    {_quoted(folder)},\n" for folder in folders)
    return f"{_HEADING}folders = [\n{lines}]\n"


def _quoted(text: str) -> str:
    """A TOML basic string: JSON's but for DEL, which TOML wants escaped (TOML 1.0, String)."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _check(path: str) -> None:
    """Raises RefusalError where no models can be looked for."""
    if Path(path) == Path(path).parent:
        raise RefusalError("bad_request", f"{path} is all of this machine; name the folder of the models", field="path")
    try:
        path.encode()
        os.listdir(path)  # noqa: PTH208 - names the reason when it may be entered but not read
    except NotADirectoryError:
        reason, hint = "is a file, not a folder", "A file can be run by its path: `enclave run /path/to/file.gguf`."
    except FileNotFoundError:
        reason, hint = "does not exist", "Make it first, or correct its name."
    except UnicodeEncodeError:
        reason, hint = "has a name that is no text", "Rename it, or add the folder it lies in."
    except (OSError, ValueError) as error:
        reason = f"cannot be read: {error.strerror if isinstance(error, OSError) else error}"
        hint = "Let yourself read it first."
    else:
        return
    raise RefusalError("bad_request", f"{path} {reason}", hint=hint, field="path")


def _replace(file: Path, text: str) -> None:
    """Whole and on the disk before it takes the old one's place, so that a kill at any moment leaves one of the two."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with open(descriptor, "w", encoding="utf-8") as opened:  # noqa: PTH123 - a descriptor
            opened.write(text)
            opened.flush()
            os.fsync(descriptor)
        os.replace(name, file)  # noqa: PTH105
    except BaseException:
        os.unlink(name)  # noqa: PTH108
        raise
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
