"""One request of a client and the way its answer takes: progress, chunks as credit allows, then exactly one end."""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from enclave.protocol.joining import ChunkJoiner
from enclave.protocol.messages import Chunk, Error, Progress, Request, Result, failure
from enclave.protocol.methods import Method
from enclaved.core.ids import RequestId
from enclaved.daemon.broker.client import Client
from enclaved.daemon.refusal import RefusalError

MESSAGE_BYTES_MAX = 4096
HINT_BYTES_MAX = 2048
"""Both travel in a header frame, which is small, and may name a path of a client's choice."""
DETAIL_BYTES_MAX = 64 * 1024
"""Of a worker's last words."""
PAUSED_BYTES_MAX = 4 * 1024 * 1024
"""Of chunks that come although a pause was asked for. What is under way on the link is a tenth of it: who goes on until
here does not listen."""


class Outlet(Protocol):
    """The session that a call answers to."""

    def credit(self, call: Call) -> int:
        """Chunks that may be sent now."""
        ...

    def takes(self) -> bool:
        """Whether the client reads what it is sent."""
        ...

    def stream(self, call: Call, body: bytes, count: int) -> bool:
        """Sends a chunk when the client can take it now; says whether it could."""
        ...

    def answer(self, call: Call, message: Progress | Chunk | Result | Error) -> None:
        """Sends a message about the call."""
        ...

    def delivered(self, call: Call) -> None:
        """Notes that somebody works on the call."""
        ...

    def room(self) -> Future[None]:
        """Done when so much has been read that there may be room."""
        ...

    paused: set[Call]
    """Those whose makers were asked to stop for now."""

    def owe(self, call: Call, size_bytes: int) -> None:
        """Counts what begins to wait, or no longer does."""
        ...

    @property
    def is_full(self) -> bool:
        """Whether so much waits that whoever makes more should pause."""
        ...

    @property
    def is_relieved(self) -> bool:
        """Whether so little waits that they may go on."""
        ...


def _nothing() -> None:
    return None


class Call:
    """A request on its way to its answer. After its end, or when its client has gone, telling it more does nothing."""

    def __init__(self, request: Request, method: Method, client: Client, outlet: Outlet) -> None:
        self.request = request
        self.method = method
        self.client = client
        self.id = RequestId(f"{client.id}/{request.id}")
        self.wants_cancel = False
        """Whether the client has asked to end it, or has gone."""
        self.on_cancel: Callable[[], None] = _nothing
        self.on_pause: Callable[[], None] = _nothing
        """Called when so much waits for the client that no more should be made."""
        self.on_resume: Callable[[], None] = _nothing
        self.on_drained: Callable[[], None] = _nothing
        """Called when nothing waits any more and the client has asked for more."""
        self._outlet = outlet
        self._joiner = ChunkJoiner(request.id)
        self._last: Result | Error | None = None
        self._ended = False
        self._paused_bytes = 0

    def __repr__(self) -> str:
        return f"<Call {self.id} {self.request.method}{' ended' if self._ended else ''}>"

    @property
    def is_flooded(self) -> bool:
        """Whether far more has come since the pause than can be when whoever makes it stops as asked."""
        return self._paused_bytes > PAUSED_BYTES_MAX

    @property
    def has_ended(self) -> bool:
        """Whether its end has been said, if perhaps not sent yet."""
        return self._ended or self._last is not None

    @property
    def is_drained(self) -> bool:
        """Whether nothing waits and the client has asked for more."""
        if self.has_ended or self.wants_cancel or len(self._joiner):
            return False
        return self._outlet.credit(self) > 0 and self._outlet.takes()

    @property
    def owed_bytes(self) -> int:
        """Of all that waits for the client, chunks and end."""
        return self.waiting_bytes + (0 if self._last is None or self._ended else _size(self._last))

    @property
    def waiting_bytes(self) -> int:
        """Of chunks that the client has not asked for yet."""
        return self._joiner.waiting_bytes

    def take_body(self) -> bytes:
        """The request's body, for whoever works on it; it is kept no longer."""
        self._outlet.delivered(self)
        body = self.request.body
        self.request = replace(self.request, body=b"", frames=())
        return body

    @property
    def has_room(self) -> bool:
        """Whether the client reads, so that an answer may be made for it."""
        return self._outlet.takes()

    async def room(self) -> None:
        """Waits until there is room."""
        while not self.has_room:
            await self._outlet.room()

    def progress(self, message: Progress) -> None:
        """Tells why it waits; nothing is owed of it, so who does not read is spared it."""
        if not self.has_ended and self._outlet.takes():
            self._outlet.answer(self, message)

    def chunk(self, body: bytes, count: int) -> None:
        """Passes `count` values on, now or when the client can take them."""
        if self.has_ended or self.wants_cancel:
            return
        outlet = self._outlet
        if not len(self._joiner) and outlet.stream(self, body, count):
            self._joiner.passed(count)
            return
        self._joiner.put(body, count)
        outlet.owe(self, len(body))
        if self in outlet.paused:
            self._paused_bytes += len(body)
        elif outlet.is_full:
            outlet.paused.add(self)
            self._paused_bytes = 0
            self.on_pause()

    def drop_waiting(self) -> None:
        """Forgets the chunks that wait."""
        self._outlet.owe(self, -self._joiner.waiting_bytes)
        self._joiner.drop()

    def result(self, message: Result) -> None:
        """Ends it well, behind all its chunks."""
        self._finish(message)

    def error(self, refusal: RefusalError) -> None:
        """Ends it with an error, behind all its chunks."""
        self._finish(
            failure(
                self.request.id,
                refusal.code,
                _cut(refusal.message, MESSAGE_BYTES_MAX),
                hint=None if refusal.hint is None else _cut(refusal.hint, HINT_BYTES_MAX),
                retry_after=refusal.retry_after,
                field=refusal.field,
                numbers=refusal.numbers,
                detail=_cut(refusal.detail, DETAIL_BYTES_MAX),
            )
        )

    def cancel(self) -> None:
        """The client no longer wants it: nothing that waits is sent, only the end."""
        if not self.wants_cancel:
            self.wants_cancel = True
            self.drop_waiting()
            self.pump()
            self.on_cancel()

    def pump(self) -> None:
        """Sends all that can be sent now."""
        while self.pump_one():
            pass
        if self.is_drained:
            self.on_drained()

    def pump_one(self) -> bool:
        """Sends one message if something waits that the client can take; says whether it did."""
        outlet = self._outlet
        sent = False
        if outlet.takes():
            if len(self._joiner):
                if outlet.credit(self) > 0:
                    before = self._joiner.waiting_bytes
                    chunk = self._joiner.take()
                    assert chunk is not None
                    outlet.owe(self, self._joiner.waiting_bytes - before)
                    outlet.answer(self, chunk)
                    sent = True
            elif self._last is not None and not self._ended:
                self._ended = True
                outlet.owe(self, -_size(self._last))
                outlet.answer(self, self._last)
                sent = True
        self.resume_if_relieved()
        return sent

    def resume_if_relieved(self) -> None:
        """Lets a paused one go on when little waits, in all or of its own."""
        outlet = self._outlet
        if self in outlet.paused and (not len(self._joiner) or outlet.is_relieved):
            outlet.paused.discard(self)
            self.on_resume()

    def _finish(self, message: Result | Error) -> None:
        if not self.has_ended:
            self._last = message
            self._outlet.owe(self, _size(message))
            self.pump()


def _size(message: Result | Error) -> int:
    attachments = message.frames if isinstance(message, Result) else ()
    return len(message.body) + sum(map(len, attachments))


def _cut(text: str, bytes_max: int) -> str:
    """The text as UTF-8 can hold it, cut to so many bytes at a whole character."""
    return text[:bytes_max].encode("utf-8", "replace")[:bytes_max].decode("utf-8", "ignore")
