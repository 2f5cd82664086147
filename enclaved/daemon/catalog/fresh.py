"""Work that is done one at a time for whoever asks, so that what it finds is never older than the question."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


class Fresh:
    """Runs `work`. All who ask while it is being done share the one run that begins when it has ended."""

    def __init__(self, work: Callable[[], Awaitable[None]]) -> None:
        self._work = work
        self._running: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Returns when a run that began after this call has ended. Raises what the work raises."""
        if self._next is None:
            self._next = asyncio.ensure_future(self._run(self._running))
        # Who is cancelled takes nothing from the others.
        await asyncio.shield(self._next)

    async def _run(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        self._running, self._next = self._next, None
        await self._work()
