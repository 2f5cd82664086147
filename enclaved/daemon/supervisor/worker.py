"""A child that holds a model: loading it, and running requests on it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Protocol, cast

from enclaved.daemon.supervisor.child import Child, ChildEndedError
from enclaved.link.framing import LinkError
from enclaved.link.messages import (
    Cancel,
    Chunk,
    Chunks,
    Failed,
    Finished,
    FromChild,
    Load,
    Loaded,
    LoadFailed,
    LoadProgress,
    Measured,
    Pause,
    Prompted,
    Resume,
    SetThreads,
    Submit,
    Warm,
)

CHUNK_BYTES_MAX = 1024 * 1024
"""A chunk is the text of a token or two; a worker that says more at once is not ours any more."""
WORDS_CHARACTERS_MAX = 4096
"""Of a worker's reason for something."""
PROGRESS_STEP = 0.01
"""Progress is passed on when it grew by so much, however often a worker tells it."""
STRAYS_MAX = 1000
"""Messages that nobody waits for. A few cross with a request's end; more is a flood."""

logger = logging.getLogger("enclaved.supervisor")


class WorkerDiedError(Exception):
    """The worker's process ended in the middle of something. `tail` is what it last wrote to stderr."""

    def __init__(self, ended: ChildEndedError) -> None:
        super().__init__(ended.message)
        self.message = ended.message
        self.tail = ended.tail


class LoadRefusedError(Exception):
    """The backend could not load the model; the text is its reason."""

    def __init__(self, failed: LoadFailed) -> None:
        super().__init__(failed.message[:WORDS_CHARACTERS_MAX])
        self.message = failed.message[:WORDS_CHARACTERS_MAX]
        self.out_of_memory = failed.out_of_memory


class Stream(Protocol):
    """Where a request's answer goes while it is made. Called in the loop's thread; none of them blocks."""

    def measured(self, prompt_tokens: int, cached_tokens: int) -> None: ...

    def prompted(self, done: int, total: int) -> None: ...

    def chunk(self, body: bytes, count: int) -> None: ...


class Worker:
    """The daemon's handle on a worker process."""

    def __init__(self, child: Child, backend: str, loop: asyncio.AbstractEventLoop) -> None:
        self.child = child
        self.backend = backend
        self._loop = loop
        self._loading: asyncio.Future[Loaded] | None = None
        self._on_progress: Callable[[float], None] = lambda _: None
        self._progress_told = 0.0
        self._strays = 0
        self._running: dict[str, tuple[Stream, asyncio.Future[Finished | Failed]]] = {}
        child.on_message = self._received
        child.on_exit = self._exited

    async def load(self, message: Load, descriptors: Sequence[int], on_progress: Callable[[float], None]) -> Loaded:
        """Loads a model. Raises LoadRefusedError, WorkerDiedError."""
        if self.child.has_ended:
            raise WorkerDiedError(await self.child.wait_exited())
        self._on_progress = on_progress
        self._loading = self._loop.create_future()
        self.child.send(message, descriptors)
        return await self._loading

    async def run(self, message: Submit, stream: Stream) -> Finished | Failed:
        """Runs a request to its end. Raises WorkerDiedError. To give up early, `cancel` it and go on waiting."""
        if self.child.has_ended:
            raise WorkerDiedError(await self.child.wait_exited())
        ended: asyncio.Future[Finished | Failed] = self._loop.create_future()
        self._running[message.request] = (stream, ended)
        try:
            self.child.send(message)
            return await ended
        finally:
            self._running.pop(message.request, None)

    def cancel(self, request: str) -> None:
        """Asks the worker to stop working on a request; its `run` then ends."""
        self.child.send(Cancel(request))

    def pause(self, request: str) -> None:
        """Asks for no more tokens of a request for now."""
        self.child.send(Pause(request))

    def resume(self, request: str) -> None:
        """Lets a paused request go on."""
        self.child.send(Resume(request))

    def set_threads(self, threads: int) -> None:
        """Grants compute threads."""
        self.child.send(SetThreads(threads))

    def _received(self, message: FromChild) -> None:
        match message:
            case LoadProgress():
                fraction = min(1.0, max(0.0, message.fraction))
                if self._loading is None or self._loading.done():
                    self._stray()
                elif fraction - self._progress_told >= PROGRESS_STEP:
                    self._progress_told = fraction
                    self._on_progress(fraction)
            case Loaded():
                if self._loading is not None and not self._loading.done():
                    self._loading.set_result(message)
                else:
                    self._stray()
            case LoadFailed():
                if self._loading is not None and not self._loading.done():
                    self._loading.set_exception(LoadRefusedError(message))
                else:
                    self._stray()
            case Chunks():
                for request, count, body in cast("list[tuple[str, int, bytes]]", message.items):
                    self._chunk(request, count, body)
            case Chunk():
                self._chunk(message.request, message.count, message.body)
            case Measured() | Prompted() | Finished() | Failed():
                self._about_a_request(message)
            case Warm():
                if message.problem is not None:
                    # Said before it has seen a model: these are the words of an import, no prompt's and no file's.
                    logger.warning("worker %d is not warm: %s", self.child.pid, message.problem[:WORDS_CHARACTERS_MAX])
                self._stray()
            case _:
                # An inspector's or a probe's answer, which nobody asked this child for.
                self.child.kill()

    def _chunk(self, request: str, count: int, body: bytes) -> None:
        known = self._running.get(request)
        if known is None or known[1].done():
            self._stray()
        # Each value takes a byte at least, so a count above that is a lie.
        elif not 1 <= count <= len(body) <= CHUNK_BYTES_MAX:
            raise LinkError(f"a chunk of {count} values in {len(body)} bytes")
        else:
            known[0].chunk(body, count)

    def _about_a_request(self, message: Measured | Prompted | Finished | Failed) -> None:
        known = self._running.get(message.request)
        if known is None or known[1].done():
            self._stray()
            return
        stream, ended = known
        match message:
            case Measured():
                stream.measured(message.prompt_tokens, message.cached_tokens)
            case Prompted():
                stream.prompted(message.done, message.total)
            case Finished() | Failed():
                ended.set_result(message)

    def _stray(self) -> None:
        self._strays += 1
        if self._strays > STRAYS_MAX:
            raise LinkError(f"more than {STRAYS_MAX} messages that nobody waited for")

    def _exited(self, ended: ChildEndedError) -> None:
        waiting: list[asyncio.Future[Loaded] | asyncio.Future[Finished | Failed]] = [
            f for _, f in self._running.values()
        ]
        if self._loading is not None:
            waiting.append(self._loading)
        for future in waiting:
            if not future.done():
                future.set_exception(WorkerDiedError(ended))
