"""Headers of model files, read by the inspector once for each file."""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Sequence

from enclaved import __version__
from enclaved.daemon.catalog.arrivals import HeaderState
from enclaved.daemon.catalog.files import FileIdentity, open_model_file
from enclaved.daemon.catalog.records import has_header, header_of, keep_header
from enclaved.daemon.catalog.store import Store
from enclaved.daemon.refusal import HeaderRefusedError
from enclaved.plugin.model import ModelHeader

VERSION = __version__
"""Another version's readers may find more, or less."""
REFUSALS_MAX = 20_000
"""A few hundred bytes each."""

ReadHeader = Callable[[str, str, int], Awaitable[ModelHeader]]
"""(file name, reader, descriptor) → header; raises RefusalError. The descriptor stays the caller's."""


class HeaderCache:
    """Remembers headers in the store, by file identity, reader and the version of this program; and which files are no
    models, as long as it lives."""

    def __init__(self, read: ReadHeader, store: Store, wall: Callable[[], float]) -> None:
        """`wall` gives the time in seconds since 1970."""
        self._read = read
        self._store = store
        self._wall = wall
        self._refused: OrderedDict[tuple[str, FileIdentity], HeaderRefusedError] = OrderedDict()

    async def get(self, path: str, reader: str) -> tuple[ModelHeader, FileIdentity]:
        """The header of the file at `path`, and which file it was read from.

        Raises RefusalError; HeaderRefusedError where reading again would find the same.
        """
        # In a thread: the file may lie on a disk that does not answer.
        descriptor, identity = await asyncio.to_thread(open_model_file, path)
        try:
            if (refused := self._refused.get((reader, identity))) is not None:
                raise HeaderRefusedError(path, refused.reason, is_cut_off=refused.is_cut_off)
            kept_as = str(identity), reader, VERSION
            header = await self._store.read(lambda connection: header_of(connection, *kept_as))
            if header is None:
                header = found = await self._read_first(path, reader, descriptor, identity)
                now = self._wall()
                await self._store.write(lambda connection: keep_header(connection, *kept_as, found, now))
        finally:
            os.close(descriptor)
        return header, identity

    async def read_among(self, files: Collection[FileIdentity]) -> set[FileIdentity]:
        """Those of the files of which a header is known."""
        return await self._store.read(
            lambda connection: {identity for identity in files if has_header(connection, str(identity), VERSION)}
        )

    def state(self, identity: FileIdentity, readers: Sequence[str]) -> HeaderState:
        """Why no header of a file is known. In any thread."""
        if not readers:
            return "none"
        refusals = [self._refused.get((reader, identity)) for reader in readers]
        if None in refusals:
            return "unread"
        return "cut off" if any(refusal is not None and refusal.is_cut_off for refusal in refusals) else "refused"

    async def _read_first(self, path: str, reader: str, descriptor: int, identity: FileIdentity) -> ModelHeader:
        try:
            return await self._read(path, reader, descriptor)
        except HeaderRefusedError as refused:
            self._refused[reader, identity] = refused
            while len(self._refused) > REFUSALS_MAX:
                self._refused.popitem(last=False)
            raise
