"""The child that looks into model files, started when first needed and again when it has died.

There are two of them, alike but for what they are asked: one reads headers, the other keeps vocabularies open. So a
long text holds up no header, and a vocabulary that ends its reader takes no header with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from enclaved.daemon.refusal import HeaderRefusedError, RefusalError
from enclaved.daemon.supervisor.child import Child, ChildEndedError, WallsMissingError
from enclaved.link.framing import FRAME_BYTES_MAX
from enclaved.link.messages import (
    FromChild,
    HeaderRead,
    HeaderRefused,
    ReadHeader,
    UseVocabulary,
    VocabularyRefused,
    VocabularyUsed,
)
from enclaved.link.packing import pack
from enclaved.plugin.model import HEADER_BYTES_MAX, ModelHeader
from enclaved.plugin.plain import from_plain

HEADER_SECONDS_MAX = 20.0
"""A header takes a tenth of a second; a file that keeps its reader busy for this long is hostile."""
VOCABULARY_SECONDS_MAX = 60.0
"""The largest text that a request may bring takes some seconds."""
TEXT_BYTES_MAX = FRAME_BYTES_MAX // 4
"""Of a body to or from a vocabulary: its message, and an answer a few times as large, fit a frame of the link."""
LEFT_SECONDS_MAX = 2.0
"""How long a job that nobody waits for any more may keep the next one waiting; then its child is ended."""
CODES = frozenset({"bad_request", "unsupported", "too_large", "bad_model_file"})
"""What a vocabulary's reader may refuse with."""

_A = TypeVar("_A", bound=FromChild)


class Inspector:
    """Does one job after the other in a child of its own, so that a hostile file costs the others only time."""

    def __init__(self, start: Callable[[], Child], loop: asyncio.AbstractEventLoop) -> None:
        self._start = start
        self._loop = loop
        self._child: Child | None = None
        self._jobs: dict[int, asyncio.Future[FromChild]] = {}
        self._under_way: asyncio.Future[FromChild] | None = None
        """The last job. It goes on when its asker has gone, since a child cannot be told to stop."""
        self._number = 0
        self._turn = asyncio.Lock()
        self._closed = False

    def warm_up(self) -> Child:
        """The child, started now if there is none."""
        if self._child is None or self._child.has_ended:
            child = self._start()
            child.on_message = self._received
            child.on_exit = lambda ended: self._exited(child, ended)
            self._child = child
        return self._child

    async def read_header(self, name: str, reader: str, descriptor: int) -> ModelHeader:
        """The header of an open file. Raises RefusalError: `bad_model_file`, `internal`, `shutting_down`."""
        async with self._turn:
            message = await self._ask(
                lambda job: ReadHeader(job, reader),
                [descriptor],
                f"{name}: its header",
                HEADER_SECONDS_MAX,
                (HeaderRead, HeaderRefused),
            )
            if isinstance(message, HeaderRefused):
                if message.kind == "trouble":
                    raise RefusalError("model_unreadable", f"{name}: {message.message}")
                raise HeaderRefusedError(name, message.message, is_cut_off=message.kind == "cut_off")
            if len(pack(message.header)) > HEADER_BYTES_MAX:
                self.warm_up().kill()
                raise HeaderRefusedError(name, f"its header is larger than {HEADER_BYTES_MAX:,} bytes")
            try:
                return from_plain(ModelHeader, message.header)
            except ValueError as error:
                raise HeaderRefusedError(name, f"its header makes no sense: {error}") from error

    async def use_vocabulary(
        self, name: str, opener: str, files: Sequence[tuple[str, str, int, int]], method: str, body: bytes
    ) -> bytes:
        """The result's body of `tokenize` or `detokenize`, from the request's, which is for the child alone to read.

        `files`: (role, name, descriptor, size in bytes) each. Raises RefusalError: what the child refuses with, and
        `bad_model_file`, `internal`, `shutting_down`, `too_large`.
        """
        if len(body) > TEXT_BYTES_MAX:
            raise RefusalError(
                "too_large",
                f"the body has {len(body):,} bytes; for {method}, at most {TEXT_BYTES_MAX:,} are allowed",
                field="body",
                numbers={"size": len(body), "size_max": TEXT_BYTES_MAX},
            )
        listed: list[list[str | int]] = [[role, file, size] for role, file, _, size in files]
        async with self._turn:
            message = await self._ask(
                lambda job: UseVocabulary(job, opener, listed, method, body),
                [descriptor for _, _, descriptor, _ in files],
                f"{name}: its vocabulary",
                VOCABULARY_SECONDS_MAX,
                (VocabularyUsed, VocabularyRefused),
            )
        if isinstance(message, VocabularyRefused):
            code = message.code if message.code in CODES else "internal"
            text = f"{name}: {message.message}" if code in ("bad_model_file", "internal") else message.message
            raise RefusalError(code, text, field=message.field)
        return message.body

    async def _ask(
        self,
        job_of: Callable[[int], ReadHeader | UseVocabulary],
        descriptors: Sequence[int],
        what: str,
        seconds_max: float,
        kinds: tuple[type[_A], ...],
    ) -> _A:
        """`what`: the part of the model that is asked for. Raises RefusalError: `bad_model_file`, `internal`,
        `shutting_down`."""
        await self._wait_left()
        if self._closed:
            raise RefusalError("shutting_down", "The daemon is about to end.")
        self._number += 1
        job = job_of(self._number)
        try:
            child = self.warm_up()
        except OSError as error:
            raise RefusalError("internal", f"the reader of model files could not be started: {error}") from error
        try:
            await child.wait_greeted()
            answer = self._jobs[job.job] = self._loop.create_future()
            try:
                child.send(job, list(descriptors))
            except BaseException:
                del self._jobs[job.job]
                raise
        except OSError as error:
            raise RefusalError("internal", f"the file could not be handed to its reader: {error}") from error
        except ChildEndedError as ended:
            if self._closed:
                raise RefusalError("shutting_down", "The daemon is about to end.") from ended
            raise RefusalError(
                "internal", "the reader of model files could not be started", detail=ended.tail
            ) from ended
        except WallsMissingError as error:
            raise RefusalError("internal", f"the reader of model files is not sandboxed: {error}") from error
        self._under_way = asyncio.ensure_future(self._answer(child, job.job, answer, what, seconds_max))
        self._under_way.add_done_callback(_mark_seen)
        message = await asyncio.shield(self._under_way)
        if not isinstance(message, kinds):
            child.kill()
            raise RefusalError("internal", "the reader of model files answered something else")
        return message

    async def _answer(
        self, child: Child, job: int, answer: asyncio.Future[FromChild], what: str, seconds_max: float
    ) -> FromChild:
        """What the child says, whether the asker still waits or not. Raises as `_ask` does."""
        try:
            return await asyncio.wait_for(answer, seconds_max)
        except TimeoutError:
            child.kill()
            raise RefusalError("bad_model_file", f"{what} took longer than {seconds_max:.0f} s") from None
        except ChildEndedError as ended:
            if self._closed:
                raise RefusalError("shutting_down", "The daemon is about to end.") from ended
            raise RefusalError("bad_model_file", f"{what} ended the reader", detail=ended.tail) from ended
        finally:
            del self._jobs[job]

    async def _wait_left(self) -> None:
        """Waits for a job whose asker has gone: its time, or its child's death, is not to be the next one's."""
        left = self._under_way
        if left is None or left.done():
            return
        done, _ = await asyncio.wait([left], timeout=LEFT_SECONDS_MAX)
        if not done:
            if self._child is not None:
                self._child.kill()
            await asyncio.wait([left])

    async def close(self, seconds: float) -> None:
        """Ends the child; there is no other afterwards."""
        self._closed = True
        if self._child is not None:
            await self._child.stop(seconds)

    def _received(self, message: FromChild) -> None:
        if isinstance(message, (HeaderRead, HeaderRefused, VocabularyUsed, VocabularyRefused)):
            answer = self._jobs.get(message.job)
            if answer is not None and not answer.done():
                answer.set_result(message)

    def _exited(self, child: Child, ended: ChildEndedError) -> None:
        if child is not self._child:
            return
        for answer in self._jobs.values():
            if not answer.done():
                answer.set_exception(ended)


def _mark_seen(answer: asyncio.Future[FromChild]) -> None:
    """Nobody may be there any more to hear of a failure."""
    if not answer.cancelled():
        answer.exception()
