"""What the daemon knows of the models that requests have named: entry, backend, header, file. Asked by the hands when
the core says to load one of them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncGenerator, Mapping, Set
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from enclaved.core.events import Need, Wish
from enclaved.core.ids import ModelKey
from enclaved.daemon.catalog import Catalog, FileIdentity, HeaderCache, identity_of, open_model_file
from enclaved.daemon.needs import InstanceSettings, backends_of, choose_backend, need_of, placement_for
from enclaved.daemon.refusal import RefusalError
from enclaved.plugin.hookspecs import Backend
from enclaved.plugin.model import ModelEntry, ModelHeader

KNOWN_MAX = 1024
"""Above it, what nobody uses is forgotten: a client may name any number of models."""
READINGS_MAX = 64
"""Files that are open for the inspector at once."""


@dataclass(frozen=True)
class KnownModel:
    """A model run by a backend."""

    key: ModelKey
    entry: ModelEntry
    backend: Backend
    header: ModelHeader
    identity: FileIdentity | None
    """Of the first file; None for a model without files."""

    @property
    def hash(self) -> str:
        """What tells this model from another of the same name: which file it is, or for a model without files a hash
        (SHA-256) of all that makes it."""
        if self.identity is not None:
            return str(self.identity)
        made_of = json.dumps([self.entry.name, sorted(self.entry.settings.items())])
        return f"sha256:{hashlib.sha256(made_of.encode()).hexdigest()}"


class Models:
    """Turns references into needs, and remembers what each need was made from."""

    def __init__(
        self,
        catalog: Catalog,
        headers: HeaderCache,
        backends: Mapping[str, Backend],
        settings: InstanceSettings,
        *,
        device: str,
        cores: int,
    ) -> None:
        self.catalog = catalog
        self.backends = backends
        self._headers = headers
        self._settings = settings
        self._device = device
        self._cores = cores
        self._known: dict[ModelKey, KnownModel] = {}
        self._measured: dict[tuple[ModelKey, int, int, str], int] = {}
        self._readings: set[asyncio.Future[tuple[ModelHeader, FileIdentity]]] = set()
        self._may_read = asyncio.Semaphore(READINGS_MAX)
        self._replaced = 0
        """Files that were found replaced so far."""

    def known(self, key: ModelKey) -> KnownModel:
        """What a key stands for."""
        return self._known[key]

    def keys_of(self, entry: ModelEntry) -> list[ModelKey]:
        """The keys under which a model has been asked for, by whichever backend."""
        return [key for key, known in self._known.items() if known.entry.name == entry.name]

    async def choose(self, reference: str | None, backend: str | None) -> tuple[ModelEntry, Backend]:
        """The model a reference means and the backend that would run it. Raises RefusalError."""
        entry = await self.catalog.resolve(reference)
        for file in entry.files:
            # In a thread: a file may lie on a disk that does not answer.
            await asyncio.to_thread(identity_of, file.path)
        if entry.files and not entry.backends and not backends_of(entry, self.backends):
            entry = await self._recognised_by_content(entry)
        return entry, choose_backend(entry, self.backends, backend)

    async def _recognised_by_content(self, entry: ModelEntry) -> ModelEntry:
        """The entry with the backends that can read its header, for a file whose name tells nothing.

        Raises RefusalError (`no_backend`) with what each backend found.
        """
        found: list[str] = []
        refusals: list[str] = []
        for name, backend in self.backends.items():
            if backend.header_reader is None:
                continue
            try:
                await self._read(entry.files[0].path, backend.header_reader)
                found.append(name)
            except RefusalError as refusal:
                refusals.append(f"for {name} it {refusal.message.removeprefix(f'{entry.files[0].path}: ')}")
        if not found:
            known = "; ".join(refusals) or "no installed backend reads files"
            raise RefusalError("no_backend", f"{entry.name} is of no kind that can be run: {known}")
        return replace(entry, backends=tuple(found))

    async def header(self, entry: ModelEntry, backend: Backend) -> tuple[ModelHeader, FileIdentity | None]:
        """A model's header and the file it was read from. Raises RefusalError."""
        if entry.header is not None or backend.header_reader is None or not entry.files:
            return entry.header or ModelHeader(format=backend.name, architecture="unknown"), None
        path = entry.files[0].path
        identity = await asyncio.to_thread(identity_of, path)
        known = self._same(entry, backend, identity)
        return (known.header, identity) if known is not None else await self._read(path, backend.header_reader)

    async def _read(self, path: str, reader: str) -> tuple[ModelHeader, FileIdentity]:
        """The header of a file. Who is cancelled leaves the reading to its end: the file is open, and whoever is next
        in the inspector's queue should not pay for it."""
        await self._may_read.acquire()
        reading = asyncio.ensure_future(self._headers.get(path, reader))
        self._readings.add(reading)
        reading.add_done_callback(self._was_read)
        return await asyncio.shield(reading)

    def _was_read(self, reading: asyncio.Future[tuple[ModelHeader, FileIdentity]]) -> None:
        self._readings.discard(reading)
        self._may_read.release()

    async def need(self, entry: ModelEntry, backend: Backend, wish: Wish) -> Need:
        """What an instance for a request would take. Raises RefusalError."""
        header, identity = await self.header(entry, backend)
        key = self._key(entry, backend, identity)
        placement = placement_for(header, wish, self._settings, self._device, self._cores)
        need = need_of(key, entry.name, backend, header, placement)
        self._known[key] = KnownModel(key, entry, backend, header, identity)
        measured_bytes = self._measured.get(_measurable(need), 0)
        return replace(need, bytes_estimated=max(need.bytes_estimated, measured_bytes))

    def measured(self, need: Need, size_bytes: int) -> None:
        """Remembers what an instance turned out to hold: the next one of the same settings is booked for as much."""
        self._measured[_measurable(need)] = size_bytes
        while len(self._measured) > KNOWN_MAX:
            del self._measured[next(iter(self._measured))]

    def _key(self, entry: ModelEntry, backend: Backend, identity: FileIdentity | None) -> ModelKey:
        """A file that was replaced under its name is another model: requests for it need another instance."""
        if (known := self._same(entry, backend, identity)) is not None:
            return known.key
        key = ModelKey(f"{entry.name}@{backend.name}")
        if key in self._known:
            self._replaced += 1
            # The number is never used again: the core may remember what became of an earlier one.
            key = ModelKey(f"{key}~{self._replaced + 1}")
        return key

    def _same(self, entry: ModelEntry, backend: Backend, identity: FileIdentity | None) -> KnownModel | None:
        """What is known of a model whose file is still the same."""
        wanted = (entry.name, backend.name, identity)
        same = (m for m in self._known.values() if (m.entry.name, m.backend.name, m.identity) == wanted)
        return next(same, None)

    def forget_but(self, in_use: Set[ModelKey]) -> None:
        """Forgets models that are not in use, the longest known first, when there are more than KNOWN_MAX."""
        for key in list(self._known)[: max(0, len(self._known) - KNOWN_MAX)]:
            if key not in in_use:
                del self._known[key]


def open_files(entry: ModelEntry, identity: FileIdentity | None = None) -> list[tuple[str, str, int, int]]:
    """(role, name, descriptor, size in bytes) of each file, opened; the caller closes them. `identity`: of the first,
    which is to be still that one. Raises RefusalError."""
    files: list[tuple[str, str, int, int]] = []
    try:
        for number, file in enumerate(entry.files):
            descriptor, found = open_model_file(file.path)
            files.append((file.role, file.name, descriptor, found.size_bytes))
            if number == 0 and identity not in (None, found):
                raise RefusalError("model_unreadable", f"{file.path}: the file was replaced; ask again")
    except RefusalError:
        _close(files)
        raise
    return files


@asynccontextmanager
async def while_open(entry: ModelEntry) -> AsyncGenerator[list[tuple[str, str, int, int]]]:
    """What `open_files` gives, opened in a thread, since a file may lie on a disk that does not answer; and closed
    afterwards, also when nobody waits any more while they are being opened. Raises RefusalError."""
    opening = asyncio.ensure_future(asyncio.to_thread(open_files, entry))
    try:
        files = await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_close_opened)
        raise
    try:
        yield files
    finally:
        _close(files)


def _close_opened(opening: asyncio.Future[list[tuple[str, str, int, int]]]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        _close(opening.result())


def _close(files: list[tuple[str, str, int, int]]) -> None:
    for _, _, descriptor, _ in files:
        os.close(descriptor)


def _measurable(need: Need) -> tuple[ModelKey, int, int, str]:
    """What an instance's memory depends on."""
    return need.model, need.context, need.sequences, need.kv_type
