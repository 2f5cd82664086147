"""The answer to a blocking call while it comes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Self, TypeVar, cast

if TYPE_CHECKING:
    from enclave.connection import Connection
    from enclave.conversation import Answer

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class Stream(Generic[ItemT, ResultT]):
    """The answer to a call while it comes: iterate for its pieces, `result()` for the whole.

    Leaving a `for` loop early, leaving the `with` block, `cancel()` or letting go of the stream cancels the request.
    What had come is in `text`; a second iteration does not give it again, and `result()` may raise CancelledError then.
    Threads may share a stream: each piece goes to one of them.
    """

    def __init__(self, answer: Answer, again: Callable[[Answer], None], wake: Callable[[], None]) -> None:
        """`again` asks a displaced answer's question on a new connection, or lets it fail; `wake` has it look whether
        the answer has ended meanwhile."""
        self._answer = answer
        self._again = again
        self._wake = wake

    def __repr__(self) -> str:
        return f"<Stream {self._answer!r}>"

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # Nobody can read it any more. At the interpreter's end, threads may be gone with what they held.
        answer: Answer | None = getattr(self, "_answer", None)
        if answer is not None and not answer.done and not answer.cancelled and not is_finalizing():
            self._cancel()  # nobody is to be woken

    @property
    def _connection(self) -> Connection:
        return cast("Connection", self._answer.place)

    def __iter__(self) -> Iterator[ItemT]:
        answer = self._answer
        try:
            while True:
                self._report()
                if answer.has_items:
                    yield from cast("list[ItemT]", self._connection.take(answer))
                elif answer.done or answer.cancelled:
                    break
                else:
                    self._wait()
        finally:
            self.cancel()
        if answer.error is not None and not answer.cancelled:
            raise answer.error

    def result(self) -> ResultT:
        """Wait for the end and give the whole; raises the EnclaveError that the call ended with."""
        answer = self._answer
        self._connection.collect(answer)
        try:
            while not answer.done:
                self._wait()
                self._report()
            self._report()
        finally:
            self.cancel()  # does nothing after the end
        return answer.outcome()

    def _wait(self) -> None:
        """Wait until something came."""
        if self._answer.displaced:
            self._again(self._answer)
        else:
            self._connection.wait(self._answer)

    def _report(self) -> None:
        progress = self._answer.call.progress
        if progress is not None:
            for news in self._answer.take_progress():
                progress(news)

    @property
    def id(self) -> int:
        """The request's number in this client's session."""
        return self._answer.id

    @property
    def done(self) -> bool:
        """Whether the end has been seen."""
        return self._answer.done

    @property
    def text(self) -> str:
        """What has come so far, of the first choice, also when the request was cancelled or has failed; empty for
        what is not text."""
        return self._answer.gathered.text

    def cancel(self) -> None:
        """Ask for the end now; does nothing when it has come already."""
        if not self._answer.done:
            self._cancel()
            if self._answer.done:
                self._wake()

    def _cancel(self) -> None:
        cancelled_on: Connection | None = None
        while cancelled_on is not self._connection:  # another thread may be asking again elsewhere
            cancelled_on = self._connection
            cancelled_on.cancel(self._answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()
