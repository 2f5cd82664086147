"""Looks at the sources: when something changes in their folders, or when somebody asks; and keeps what they list.

A model of a watched source is listed when its files are whole (`arrivals`). For that the headers of new files are read,
one after the other, while nobody waits for them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from sqlite3 import Connection
from typing import Any

from enclaved.daemon.catalog.arrivals import HeaderState
from enclaved.daemon.catalog.files import FileIdentity
from enclaved.daemon.catalog.fresh import Fresh
from enclaved.daemon.catalog.headers import HeaderCache
from enclaved.daemon.catalog.listing import Found, Listing, compared, find, identities_of, sort_out
from enclaved.daemon.catalog.records import Changes, forget_headers, forget_sources_but, replace_models, update_models
from enclaved.daemon.catalog.store import Store
from enclaved.daemon.catalog.watcher import Watched, Watcher
from enclaved.daemon.refusal import RefusalError
from enclaved.plugin.hookspecs import Source, SourceContext, WatchedFolder
from enclaved.plugin.model import ModelEntry

SETTLE_SECONDS = 0.1
"""What is changed together is looked at together."""
TRIED_MAX = 100_000
"""Files whose headers could not be read, of which so many are remembered."""
HEADERS_KEPT_SECONDS = 90 * 86_400.0
"""So long what is known of a file is kept after it was last listed or read."""
LOOKS_SHARE = 0.25
"""Of the time, at most so much goes into looks at a folder in which something changes all the time."""

logger = logging.getLogger("enclaved.catalog")


@dataclass
class _Looked:
    """A source, and what is known of how it is to be looked at."""

    source: Source
    context: SourceContext
    fresh: Fresh
    is_watched: bool = False
    """Whether what it listed last is all that its references can mean."""
    watched: Sequence[Watched] = ()
    listed: dict[str, Found] | None = None
    """What it offered last, by name; None before the first look."""
    whole: set[FileIdentity] = field(default_factory=set[FileIdentity])
    """Files that nobody was writing when they were looked at."""
    read: set[FileIdentity] = field(default_factory=set[FileIdentity])
    """Files whose headers have been read."""
    sorting: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by whoever changes what is listed."""
    seconds: float = 0.0
    """What the last look took."""
    again: asyncio.TimerHandle | None = None


class Looker:
    """Keeps the store's list of models as the sources have them."""

    def __init__(
        self,
        store: Store,
        sources: Sequence[tuple[Source, SourceContext]],
        headers: HeaderCache,
        readers_of: Callable[[ModelEntry], Sequence[str]],
        wall: Callable[[], float],
        poll_seconds: float,
    ) -> None:
        """`readers_of` tells which header readers may read a model's first file, `wall` the time in seconds since 1970;
        `poll_seconds`: how often to look at folders that tell of no changes."""
        self._store = store
        self._headers = headers
        self._readers_of = readers_of
        self._wall = wall
        self._poll_seconds = poll_seconds
        self._sources: dict[str, _Looked] = {}
        for source, context in sources:
            self._sources[source.name] = _Looked(source, context, Fresh(lambda name=source.name: self._look(name)))
        self._watcher: Watcher | None = None
        self._watching = asyncio.Lock()
        self._urgent: dict[FileIdentity, Found] = {}
        """Models whose headers decide whether they are offered; the last one is read first."""
        self._unread: dict[FileIdentity, Found] = {}
        """Models that are offered, whose headers are read after those."""
        self._tried: set[FileIdentity] = set()
        """Files that could not be read, for whatever reason; they may be when something asks for them."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._reading: asyncio.Task[None] | None = None
        self._closed = False
        self.on_change: Callable[[Changes], Awaitable[None]] = _unheard
        """Told what a look at a source found to be different."""

    @property
    def sources(self) -> list[tuple[Source, SourceContext]]:
        """All sources, in order of preference."""
        return [(looked.source, looked.context) for looked in self._sources.values()]

    @property
    def watched_sources(self) -> list[str]:
        """The sources of which the store has all that their references can mean."""
        return [name for name, looked in self._sources.items() if looked.is_watched]

    @property
    def sources_with_folders(self) -> list[str]:
        """The sources that look into folders of the user's choice."""
        return [name for name, looked in self._sources.items() if looked.source.takes_folders]

    def give_folders(self, folders: Sequence[str]) -> None:
        """From their next look on, the sources that look into folders look into these."""
        for name in self.sources_with_folders:
            looked = self._sources[name]
            looked.context = replace(looked.context, folders=tuple(map(Path, folders)))

    def watched_folders(self, source: str) -> Sequence[Watched]:
        """How the folders of a source are watched."""
        return self._sources[source].watched

    async def begin(self) -> None:
        """The first look, for which nobody waits."""
        try:
            names = list(self._sources)
            await self._store.write(lambda connection: forget_sources_but(connection, names))
            old = self._wall() - HEADERS_KEPT_SECONDS
            await self._store.write(lambda connection: forget_headers(connection, old))
            await self.look()
        except RefusalError:  # the daemon is about to end
            return
        except Exception:
            logger.exception("the first look at the sources failed")

    async def look(self) -> None:
        """Looks at all sources that are not watched. A source that fails keeps what it listed last."""
        for looked in self._sources.values():
            if not looked.is_watched:
                await looked.fresh.run()

    async def look_at(self, source: str) -> None:
        """Looks at a source now, whether it is watched or not."""
        await self._sources[source].fresh.run()

    async def close(self) -> None:
        """Looks at nothing any more."""
        self._closed = True
        for looked in self._sources.values():
            _cancel(looked)
        for task in self._tasks:
            task.cancel()
        async with self._watching:
            if self._watcher is not None:
                self._watcher.close()

    # --- a look ---

    async def _look(self, name: str) -> None:
        looked = self._sources[name]
        _cancel(looked)
        began = time.monotonic()
        try:
            folders, found = await self._listing(looked)
        except Exception:
            logger.exception("the source %s failed", name)
            return
        async with looked.sorting:
            if folders is None:
                listing = await asyncio.to_thread(_all_of, found, looked.listed or {})
            else:
                listing = await self._sorted_out(looked, found)
            changes = await self._keep(looked, listing)
        if folders is not None:
            if any(each.problem is not None for each in looked.watched):
                listing.again_seconds = min(listing.again_seconds, self._poll_seconds)
            if listing.again_seconds < float("inf"):
                self._look_again(looked, listing.again_seconds)
        looked.seconds = time.monotonic() - began
        looked.is_watched = folders is not None
        if changes:
            await self.on_change(changes)
        self._read_later(listing)

    async def _listing(self, looked: _Looked) -> tuple[Sequence[WatchedFolder] | None, list[Found]]:
        """The folders to watch, which are watched already, and what the source lists."""
        folders = await asyncio.to_thread(looked.source.watched, looked.context)
        while True:
            if folders is not None:
                looked.watched = await self._watch(looked.source.name, folders)
            whole = None if folders is None else looked.whole
            found = await asyncio.to_thread(find, looked.source, looked.context, whole)
            before, folders = folders, await asyncio.to_thread(looked.source.watched, looked.context)
            if folders is None or set(folders) <= set(before or ()):
                return folders, found

    async def _watch(self, name: str, folders: Sequence[WatchedFolder]) -> list[Watched]:
        loop = asyncio.get_running_loop()

        def changed(source: str) -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._changed, source)

        async with self._watching:
            if self._closed:
                raise RefusalError("shutting_down", "The daemon is about to end.")
            if self._watcher is None:
                self._watcher = Watcher(changed)
            return await asyncio.to_thread(self._watcher.watch, name, folders)

    async def _sorted_out(self, looked: _Looked, found: Sequence[Found]) -> Listing:
        files = await asyncio.to_thread(identities_of, found)
        looked.read &= files
        looked.read |= await self._headers.read_among(files - looked.read)

        def header_of(identity: FileIdentity, entry: ModelEntry) -> HeaderState:
            if entry.header is not None:
                return "none"
            return "read" if identity in looked.read else self._headers.state(identity, self._readers_of(entry))

        known = self._urgent.keys() | self._unread.keys() | self._tried
        listing = await asyncio.to_thread(sort_out, found, looked.listed or {}, header_of, known, self._wall())
        looked.whole = listing.whole
        return listing

    async def _keep(self, looked: _Looked, listing: Listing) -> Changes:
        name, now, is_first = looked.source.name, self._wall(), looked.listed is None

        def work(connection: Connection) -> Changes:
            if is_first:
                return replace_models(connection, name, listing.different, now)
            return update_models(connection, name, listing.different, listing.gone, now)

        changes = await self._store.write(work)
        looked.listed = listing.offered
        return changes

    # --- when to look again ---

    def _changed(self, source: str) -> None:
        """Something has changed in a folder of a source."""
        looked = self._sources[source]
        self._look_again(looked, max(SETTLE_SECONDS, looked.seconds * (1 / LOOKS_SHARE - 1)))

    def _look_again(self, looked: _Looked, seconds: float) -> None:
        """Looks in so many seconds, or earlier if that is planned."""
        loop = asyncio.get_running_loop()
        at = loop.time() + seconds
        if self._closed or (looked.again is not None and looked.again.when() <= at):
            return
        _cancel(looked)
        looked.again = loop.call_at(at, lambda: self._spawn(looked.fresh.run()))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        async def guarded() -> None:
            try:
                await work
            except RefusalError:  # the daemon is about to end
                return
            except Exception:
                logger.exception("a look at a source failed")

        task = asyncio.ensure_future(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- headers ---

    def _read_later(self, listing: Listing) -> None:
        self._urgent.update(listing.urgent)
        self._unread.update(listing.unread)
        if (self._reading is None or self._reading.done()) and not self._closed:
            self._reading = self._spawn(self._read_headers())

    async def _read_headers(self) -> None:
        while waiting := self._urgent or self._unread:
            identity, found = waiting.popitem()
            if len(self._tried) >= TRIED_MAX:
                self._tried.clear()
            self._tried.add(identity)
            is_same = is_read = False
            for reader in self._readers_of(found.entry):
                with suppress(RefusalError):
                    _, read = await self._headers.get(found.entry.files[0].path, reader)
                    is_read, is_same = True, read == identity
            if is_read and is_same:
                await self._was_read(found, identity)
            else:
                self._look_again(self._sources[found.entry.source], SETTLE_SECONDS)

    async def _was_read(self, found: Found, identity: FileIdentity) -> None:
        """A model whose header is known now is offered, if it was not, without another look at all the others."""
        looked = self._sources[found.entry.source]
        looked.read.add(identity)
        changes = Changes(changed=(found.entry.name,))
        async with looked.sorting:
            if looked.listed is not None and looked.listed.get(found.entry.name) != found:
                looked.listed[found.entry.name] = found
                now = self._wall()
                changes = await self._store.write(
                    lambda connection: update_models(connection, found.entry.source, [found.listed], [], now)
                )
        await self.on_change(changes)


async def _unheard(_: Changes) -> None: ...


def _cancel(looked: _Looked) -> None:
    if looked.again is not None:
        looked.again.cancel()
        looked.again = None


def _all_of(found: Sequence[Found], before: Mapping[str, Found]) -> Listing:
    """A source that is not watched offers whatever it lists."""
    return compared(Listing(offered={each.entry.name: each for each in found}), before)
