"""The answer to an asynchronous call while it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, cast

from enclave.exceptions import CancelledError

if TYPE_CHECKING:
    from enclave.aio_connection import AsyncConnection
    from enclave.calls import Call
    from enclave.conversation import Answer

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class AsyncStream(Generic[ItemT, ResultT]):
    """The answer to a call while it comes: iterate for its pieces, `result()` (or awaiting it) for the whole.

    The request is sent at once, or as soon as the client is connected. Leaving an `async for` loop early, leaving the
    `async with` block, `cancel()` or cancelling the task that waits cancels the request. Tasks may share a stream: each
    piece goes to one of them.
    """

    def __init__(
        self,
        call: Call,
        connected: AsyncConnection | None,
        connect: Callable[[], Awaitable[AsyncConnection]],
        again: Callable[[Answer], Awaitable[AsyncConnection | None]],
    ) -> None:
        """`connected` is where to send now; without one, `connect` is awaited. `again` asks a displaced answer's
        question on a new connection; without one, the answer has failed."""
        self._call = call
        self._again = again
        self._connection: AsyncConnection | None = None
        self._answer: Answer | None = None
        self._opening: asyncio.Task[None] | None = None
        self._moving: asyncio.Task[None] | None = None
        self._cancelled = False
        if connected is not None:
            self._begin(connected)
        else:
            self._opening = asyncio.get_running_loop().create_task(self._open(connect))
            self._opening.add_done_callback(_retrieve)

    def __repr__(self) -> str:
        state = f"{self._call.method}, connecting" if self._answer is None else repr(self._answer)
        return f"<AsyncStream {state}>"

    def _begin(self, connection: AsyncConnection) -> None:
        self._connection = connection
        self._answer = connection.begin(self._call)

    async def _open(self, connect: Callable[[], Awaitable[AsyncConnection]]) -> None:
        self._begin(await connect())

    async def _opened(self) -> tuple[AsyncConnection, Answer]:
        if self._answer is None:
            if self._cancelled or self._opening is None:
                raise CancelledError
            await self._opening
        assert self._connection is not None
        assert self._answer is not None
        return self._connection, self._answer

    async def __aiter__(self) -> AsyncIterator[ItemT]:
        try:
            _, answer = await self._opened()
            while True:
                connection = self._report(answer)
                if answer.has_items:
                    for item in cast("list[ItemT]", connection.take(answer)):
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
            connection, answer = await self._opened()
            connection.collect(answer)
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
                self._moving = asyncio.get_running_loop().create_task(self._move(answer))
            await asyncio.shield(self._moving)
        else:
            assert self._connection is not None
            await self._connection.wait(answer)

    async def _move(self, answer: Answer) -> None:
        self._connection = await self._again(answer) or self._connection

    def _report(self, answer: Answer) -> AsyncConnection:
        """Tell of the progress; gives the connection that the answer comes over now."""
        if self._call.progress is not None:
            for news in answer.take_progress():
                self._call.progress(news)
        assert self._connection is not None
        return self._connection

    def __await__(self) -> Generator[Any, None, ResultT]:
        return self.result().__await__()

    @property
    def id(self) -> int | None:
        """The request's number in this client's session; None before the client is connected."""
        return None if self._answer is None else self._answer.id

    @property
    def done(self) -> bool:
        """Whether the end has been seen."""
        return self._answer is not None and self._answer.done

    def cancel(self) -> None:
        """Ask for the end now; does nothing when it has come already."""
        self._cancelled = True
        if self._connection is not None and self._answer is not None:
            self._connection.cancel(self._answer)
        elif self._opening is not None:
            self._opening.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


def _retrieve(task: asyncio.Task[None]) -> None:
    # Whoever waits for the stream gets the error; if nobody does, it is nobody's.
    if not task.cancelled():
        task.exception()
