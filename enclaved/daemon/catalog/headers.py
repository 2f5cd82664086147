"""Headers of model files, read by the inspector once for each file."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

from enclaved import __version__
from enclaved.daemon.catalog.files import FileIdentity, open_model_file
from enclaved.daemon.catalog.records import header_of, keep_header
from enclaved.daemon.catalog.store import Store
from enclaved.plugin.model import ModelHeader

ReadHeader = Callable[[str, str, int], Awaitable[ModelHeader]]
"""(file name, reader, descriptor) → header; raises RefusalError. The descriptor stays the caller's."""


class HeaderCache:
    """Remembers headers in the store, by file identity, reader and the version of this program."""

    def __init__(self, read: ReadHeader, store: Store, wall: Callable[[], float]) -> None:
        """`wall` gives the time in seconds since 1970."""
        self._read = read
        self._store = store
        self._wall = wall

    async def get(self, path: str, reader: str) -> tuple[ModelHeader, FileIdentity]:
        """The header of the file at `path`, and which file it was read from. Raises RefusalError."""
        # In a thread: the file may lie on a disk that does not answer.
        descriptor, identity = await asyncio.to_thread(open_model_file, path)
        try:
            # Another version's reader may have found less than this one finds.
            kept_as = f"{reader} {__version__}"
            header = await self._store.read(lambda connection: header_of(connection, kept_as, str(identity)))
            if header is None:
                header = found = await self._read(path, reader, descriptor)
                now = self._wall()
                await self._store.write(lambda connection: keep_header(connection, kept_as, str(identity), found, now))
        finally:
            os.close(descriptor)
        return header, identity
