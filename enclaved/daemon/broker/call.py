"""One request of a client and the way its answer takes: progress, chunks as credit allows, then exactly one end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from enclave.protocol.joining import ChunkJoiner
from enclave.protocol.messages import Error, Message, Priority, Progress, Request, Result, failure
from enclave.protocol.methods import Method
from enclave.protocol.session import Session
from enclaved.core.ids import ClientId, RequestId
from enclaved.daemon.refusal import RefusalError

MESSAGE_BYTES_MAX = 4096
HINT_BYTES_MAX = 2048
"""Both travel in a header frame, which is small, and may name a path of a client's choice."""
DETAIL_BYTES_MAX = 64 * 1024
"""Of a worker's last words."""
WAITING_BYTES_MAX = 16 * 1024 * 1024
"""Of chunks. Sixteen times what a worker is asked to pause at: who goes on until here does not listen."""


@dataclass(frozen=True)
class Client:
    """Who asks."""

    id: ClientId
    name: str
    """As it called itself."""
    pid: int | None
    """As the system vouches for it, where it does."""
    priority: Priority = Priority.NORMAL
    """Of its requests that don't say their own."""


def _nothing() -> None:
    return None


class Call:
    """A request on its way to its answer. After its end, or when its client has gone, telling it more does nothing."""

    def __init__(
        self, request: Request, method: Method, client: Client, session: Session, send: Callable[[Message], None]
    ) -> None:
        self.request = request
        self.method = method
        self.client = client
        self.id = RequestId(f"{client.id}/{request.id}")
        self.wants_cancel = False
        """Whether the client has asked to end it, or has gone."""
        self.on_cancel: Callable[[], None] = _nothing
        self.on_pause: Callable[[], None] = _nothing
        """Called when what waits for the client has reached its budget."""
        self.on_resume: Callable[[], None] = _nothing
        self._session = session
        self._send_message = send
        self._joiner = ChunkJoiner(request.id)
        self._last: Result | Error | None = None
        self._ended = False
        self._paused = False

    def __repr__(self) -> str:
        return f"<Call {self.id} {self.request.method}{' ended' if self._ended else ''}>"

    @property
    def is_flooded(self) -> bool:
        """Whether far more chunks wait than can be when whoever makes them pauses as asked."""
        return self._joiner.waiting_bytes > WAITING_BYTES_MAX

    @property
    def has_ended(self) -> bool:
        """Whether its end has been said, if perhaps not sent yet."""
        return self._ended or self._last is not None

    def progress(self, message: Progress) -> None:
        """Tells why it waits."""
        if not self.has_ended:
            self._send_message(message)

    def chunk(self, body: bytes, count: int) -> None:
        """Passes `count` values on, now or when there is credit."""
        if self.has_ended or self.wants_cancel:
            return
        self._joiner.put(body, count)
        self.pump()
        if self._joiner.full and not self._paused:
            self._paused = True
            self.on_pause()

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
                numbers=refusal.numbers,
                detail=_cut(refusal.detail, DETAIL_BYTES_MAX),
            )
        )

    def cancel(self) -> None:
        """The client no longer wants it: nothing that waits is sent, only the end."""
        if not self.wants_cancel:
            self.wants_cancel = True
            self._joiner.drop()
            self.pump()
            self.on_cancel()

    def pump(self) -> None:
        """Sends what credit allows, and the end when nothing waits before it."""
        while len(self._joiner) and self._session.credit(self.request.id) > 0:
            chunk = self._joiner.take()
            if chunk is not None:
                self._send_message(chunk)
        if self._last is not None and not len(self._joiner) and not self._ended:
            self._ended = True
            self._send_message(self._last)
        if self._paused and self._joiner.waiting_bytes * 2 < self._joiner.budget_bytes:
            self._paused = False
            self.on_resume()

    def _finish(self, message: Result | Error) -> None:
        if not self.has_ended:
            self._last = message
            self.pump()


def _cut(text: str, bytes_max: int) -> str:
    """The text as UTF-8 can hold it, cut to so many bytes at a whole character."""
    return text[:bytes_max].encode("utf-8", "replace")[:bytes_max].decode("utf-8", "ignore")
