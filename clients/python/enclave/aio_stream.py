"""The answer to an asynchronous call while it comes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, cast

from enclave.exceptions import CancelledError, EnclaveError

if TYPE_CHECKING:
    from enclave.aio_connection import AsyncConnection
    from enclave.calls import Call
    from enclave.conversation import Answer

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class AsyncStream(Generic[ItemT, ResultT]):
    """The answer to a call while it comes: iterate for its pieces, `result()` (or awaiting it) for the whole.

    The request is sent at once, or as soon as the client is connected; what is wrong with it is raised to who waits.
    Leaving an `async for` loop early, leaving the `async with` block, `cancel()`, letting go of the stream or
    cancelling the task that waits cancels the request. What had come is in `text`; a second iteration does not give it
    again, and `result()` may raise CancelledError then. Tasks may share a stream: each piece goes to one of them.
    """

    def __init__(
        self,
        call: Call | EnclaveError,
        connected: AsyncConnection | None,
        connect: Callable[[], Awaitable[AsyncConnection]],
        again: Callable[[Answer], Coroutine[Any, Any, None]],
    ) -> None:
        """`call` may be why there is none. `connected` is where to send now; without one, `connect` is awaited. `again`
        asks a displaced answer's question on a new connection, or lets it fail."""
        self._again = again
        self._answer: Answer | None = None
        self._failed: EnclaveError | None = None
        """Why nothing was asked."""
        self._opening: asyncio.Task[None] | None = None
        self._moving: asyncio.Task[None] | None = None
        self._cancelled = False
        if isinstance(call, EnclaveError):
            self._failed = call
        elif connected is not None:
            self._begin(call, connected)
        else:
            self._opening = asyncio.get_running_loop().create_task(self._open(call, connect))

    def __repr__(self) -> str:
        if self._failed is not None:
            return f"<AsyncStream failed: {self._failed.code}>"
        return f"<AsyncStream {'connecting' if self._answer is None else repr(self._answer)}>"

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # Nobody can read it any more. It may be any thread that finds this out.
        answer: Answer | None = getattr(self, "_answer", None)
        if answer is not None and not answer.done and not answer.cancelled and not is_finalizing():
            cast("AsyncConnection", answer.place).drop(answer)

    def _begin(self, call: Call, connection: AsyncConnection) -> None:
        try:
            self._answer = connection.begin(call)
        except EnclaveError as error:
            self._failed = error

    async def _open(self, call: Call, connect: Callable[[], Awaitable[AsyncConnection]]) -> None:
        try:
            self._begin(call, await connect())
        except EnclaveError as error:
            self._failed = error

    async def _opened(self) -> Answer:
        if self._answer is None and self._opening is not None and not self._cancelled:
            await asyncio.wait([self._opening])  # who waits may be cancelled without it
            if not self._opening.cancelled():
                self._opening.result()
        if self._failed is not None:
            raise self._failed
        if self._answer is None:
            raise CancelledError
        return self._answer

    async def __aiter__(self) -> AsyncIterator[ItemT]:
        try:
            answer = await self._opened()
            while True:
                self._report(answer)
                if answer.has_items:
                    for item in cast("list[ItemT]", _connection(answer).take(answer)):
                        yield item
                elif answer.done or answer.cancelled:
                    break
                else:
                    await self._wait(answer)
        finally:
            self.cancel()
        if answer.error is not None and not answer.cancelled:
            raise answer.error

    async def result(self) -> ResultT:
        """Wait for the end and give the whole; raises the EnclaveError that the call ended with."""
        try:
            answer = await self._opened()
            _connection(answer).collect(answer)
            while not answer.done:
                await self._wait(answer)
                self._report(answer)
            self._report(answer)
        finally:
            self.cancel()  # does nothing after the end
        return answer.outcome()

    async def _wait(self, answer: Answer) -> None:
        """Wait until something came."""
        if answer.displaced:
            if self._moving is None or self._moving.done():
                self._moving = asyncio.get_running_loop().create_task(self._again(answer))
            moving = self._moving
            await asyncio.wait([moving])  # who waits may be cancelled without it, and it without them
            if not moving.cancelled():
                moving.result()
        else:
            await _connection(answer).wait(answer)

    def _report(self, answer: Answer) -> None:
        progress = answer.call.progress
        if progress is not None:
            for news in answer.take_progress():
                progress(news)

    def __await__(self) -> Generator[Any, None, ResultT]:
        return self.result().__await__()

    @property
    def id(self) -> int | None:
        """The request's number in this client's session; None before the client is connected."""
        return None if self._answer is None else self._answer.id

    @property
    def done(self) -> bool:
        """Whether the end has been seen."""
        return self._failed is not None or (self._answer is not None and self._answer.done)

    @property
    def text(self) -> str:
        """What has come so far, of the first choice, also when the request was cancelled or has failed; empty for
        what is not text."""
        return "" if self._answer is None else self._answer.gathered.text

    def cancel(self) -> None:
        """Ask for the end now; does nothing when it has come already."""
        self._cancelled = True
        if self._answer is not None:
            _connection(self._answer).cancel(self._answer)
            if self._moving is not None:
                self._moving.cancel()
        elif self._opening is not None:
            self._opening.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


def _connection(answer: Answer) -> AsyncConnection:
    return cast("AsyncConnection", answer.place)
