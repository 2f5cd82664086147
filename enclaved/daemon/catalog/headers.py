"""Headers of model files, read by the inspector once for each file."""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from enclaved.daemon.catalog.files import FileIdentity, open_model_file
from enclaved.plugin.model import ModelHeader

HEADERS_MAX = 256
"""At 64 KiB each at most 16 MiB, typically 1 MiB."""

ReadHeader = Callable[[str, str, int], Awaitable[ModelHeader]]
"""(file name, reader, descriptor) → header; raises RefusalError. The descriptor stays the caller's."""


class HeaderCache:
    """Remembers headers by (reader, file identity), the least recently used forgotten first."""

    def __init__(self, read: ReadHeader) -> None:
        self._read = read
        self._headers: OrderedDict[tuple[str, FileIdentity], ModelHeader] = OrderedDict()

    async def get(self, path: str, reader: str) -> tuple[ModelHeader, FileIdentity]:
        """The header of the file at `path`, and which file it was read from. Raises RefusalError."""
        # In a thread: the file may lie on a disk that does not answer.
        descriptor, identity = await asyncio.to_thread(open_model_file, path)
        try:
            known = self._headers.get((reader, identity))
            header = known if known is not None else await self._read(path, reader, descriptor)
        finally:
            os.close(descriptor)
        self._headers[reader, identity] = header
        self._headers.move_to_end((reader, identity))
        while len(self._headers) > HEADERS_MAX:
            self._headers.popitem(last=False)
        return header, identity
