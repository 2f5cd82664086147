"""What a client knows of its open calls: the pure half of both clients, between the Session and the socket.

`Conversation` turns calls into frames and incoming frames into Answers; the clients move the frames and wait. No
socket, no clock, no thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from enclave.calls import Call
from enclave.exceptions import EnclaveError, TooLargeError, error_for, error_from
from enclave.protocol.errors import LocalProtocolError, RemoteProtocolError
from enclave.protocol.messages import (
    CREDIT_INITIAL,
    PROTOCOL_VERSION,
    Bye,
    Cancel,
    Chunk,
    Credit,
    Error,
    Hello,
    Message,
    Priority,
    Progress,
    Request,
    Result,
    Welcome,
)
from enclave.protocol.methods import TextChunk, read_chunks
from enclave.protocol.session import Role, Session, State
from enclave.results import Gathered, finished


class Answer:
    """The answer to one call as far as it has come."""

    def __init__(self, call: Call, request: Request) -> None:
        self.call = call
        self.id = request.id
        self.result: Any = None
        self.error: EnclaveError | None = None
        self.done = False
        self.cancelled = False
        """Whether this side asked for its end; what still comes is gathered but not kept for iteration."""
        self.collecting = False
        """Whether nobody iterates any more: chunks are gathered only."""
        self.gathered = Gathered()
        self._items: deque[tuple[object, bool]] = deque()
        """(what iteration gives, whether it is the last of its message)."""
        self._progress: deque[Progress] = deque()
        self._consumed = 0
        """Chunk messages used up since the last grant."""
        self._grant_at = max(1, request.credit // 2) if request.credit else CREDIT_INITIAL // 2

    def __repr__(self) -> str:
        if self.error is not None:
            state = f"failed: {self.error.code}"
        elif self.done:
            state = "done"
        else:
            state = "cancelled" if self.cancelled else "open"
        return f"{self.call.method} {self.id}, {state}"

    @property
    def has_items(self) -> bool:
        """Whether `take` has something to give."""
        return bool(self._items)

    def take(self) -> object:
        """The next thing that iteration gives."""
        item, last = self._items.popleft()
        self._consumed += last
        return item

    def take_progress(self) -> list[Progress]:
        """What the call's `progress` function has not been told yet."""
        news = list(self._progress)
        self._progress.clear()
        return news

    def collect(self) -> None:
        """From here on chunks are only gathered; those that wait count as used."""
        self.collecting = True
        self._consumed += sum(last for _, last in self._items)
        self._items.clear()

    def credit_due(self) -> int:
        """Chunk messages to grant now; 0 for not yet."""
        if self.done or self.cancelled or self._consumed < self._grant_at:
            return 0
        granted, self._consumed = self._consumed, 0
        return granted

    def outcome(self) -> Any:
        """The result of a finished call; raises its error."""
        if self.error is not None:
            raise self.error
        return self.result

    # --- fed by Conversation -----------------------------------------------------------------------------------------

    def feed(self, message: Progress | Chunk | Result | Error) -> None:
        """Take in a message about this call; raises RemoteProtocolError when its body makes no sense."""
        if self.done:
            return  # given up before its end
        if isinstance(message, Progress):
            if self.call.progress is not None:
                self._progress.append(message)
            if self.call.events and not self.collecting and not self.cancelled:
                self._items.append((message, False))
        elif isinstance(message, Chunk):
            self._feed_chunk(message)
        elif isinstance(message, Result):
            self.result = finished(self.call.method, message, self.gathered)
            self.done = True
        else:
            self.fail(error_of(message))

    def _feed_chunk(self, message: Chunk) -> None:
        values = list(read_chunks(self.call.method, message))
        for value in values:
            if isinstance(value, TextChunk):
                self.gathered.add(value)
        if self.collecting or self.cancelled:
            self._consumed += 1
            return
        self._items.extend((value, index == len(values) - 1) for index, value in enumerate(values))

    def fail(self, error: EnclaveError) -> None:
        """End the call with an error; what waits for iteration stays readable."""
        if not self.done:
            self.error = error
            self.done = True


class Conversation:
    """One session with the daemon and its open calls."""

    def __init__(self, name: str, program: str, priority: Priority) -> None:
        self._session = Session(Role.CLIENT)
        self._hello = Hello(version=PROTOCOL_VERSION, client=name, program=program, priority=priority)
        self._answers: dict[int, Answer] = {}
        self.ending: EnclaveError | None = None
        """Why the conversation is over; None while it is not."""

    def __repr__(self) -> str:
        return f"<Conversation {self._session.state.value}, {len(self._answers)} open>"

    @property
    def open_count(self) -> int:
        return len(self._answers)

    @property
    def welcome(self) -> Welcome | None:
        """The daemon's welcome once it is there: from then on calls may begin."""
        return self._session.welcome if self._session.state is State.OPEN else None

    def greet(self) -> list[bytes]:
        """The frames of the hello."""
        return self._session.send(self._hello)

    def begin(self, call: Call) -> tuple[Answer, list[bytes]]:
        """A new answer and its request's frames; raises EnclaveError for what may not be sent."""
        limits = self._session.limits
        if len(call.body) > limits.body_bytes:
            raise TooLargeError(
                f"the request has {len(call.body):,} bytes, the daemon takes at most {limits.body_bytes:,}",
                numbers={"size": len(call.body), "size_max": limits.body_bytes},
            )
        request = call.request(self._session.next_id())
        try:
            frames = self._session.send(request)
        except LocalProtocolError as error:
            raise error_from(error) from error
        answer = Answer(call, request)
        self._answers[answer.id] = answer
        return answer, frames

    def grant(self, answer: Answer) -> list[bytes] | None:
        """The frames of the credit that is due, if any is."""
        if answer.id not in self._answers or self.ending is not None:
            return None
        chunks = answer.credit_due()
        return self._session.send(Credit(id=answer.id, chunks=chunks)) if chunks else None

    def cancel(self, answer: Answer) -> list[bytes] | None:
        """The frames that cancel a call; None when it has ended or is cancelled already."""
        if answer.cancelled or self.ending is not None or answer.id not in self._answers:
            return None
        answer.cancelled = True
        answer.collect()
        return self._session.send(Cancel(id=answer.id))

    def leave(self) -> list[bytes] | None:
        """The frames of the bye; afterwards every open call has ended as cancelled."""
        is_open = self.ending is None and self._session.state is State.OPEN
        frames = self._session.send(Bye()) if is_open else None
        self.lost(error_for("cancelled", "the client was closed"))
        return frames

    def receive(self, frames: Sequence[bytes]) -> list[Answer]:
        """Take in a message; gives the answers that changed. What cannot be understood ends the conversation."""
        changed: list[Answer] = []
        try:
            for message in self._session.receive(frames):
                changed.extend(self._dispatch(message))
        except RemoteProtocolError as error:
            if error.code == "version_mismatch":
                return self.lost(error_from(error))
            return self.lost(_senseless(error))
        return changed

    def _dispatch(self, message: Message) -> list[Answer]:
        if isinstance(message, Error) and message.id is None:
            return self.lost(error_of(message))
        if not isinstance(message, (Progress, Chunk, Result, Error)) or message.id is None:
            return []
        answer = self._answers[message.id]
        try:
            answer.feed(message)
        except RemoteProtocolError as error:
            # The frames were in order, so only this call suffers: its body came from elsewhere, a worker perhaps.
            answer.fail(_senseless(error))
        if isinstance(message, (Result, Error)):
            del self._answers[answer.id]
        return [answer]

    def lost(self, error: EnclaveError) -> list[Answer]:
        """End the conversation and every open call with the error; gives those calls' answers."""
        if self.ending is None:
            self.ending = error
        ended = list(self._answers.values())
        self._answers.clear()
        for answer in ended:
            answer.fail(error)
        return ended


def _senseless(error: RemoteProtocolError) -> EnclaveError:
    return error_for("bad_message", f"the daemon's answer makes no sense: {error.message}", field=error.field)


def error_of(message: Error) -> EnclaveError:
    """The exception for an `error` message."""
    return error_for(
        message.code,
        message.message,
        hint=message.hint or None,
        retryable=message.retryable,
        retry_after=message.retry_after,
        field=message.field,
        numbers=message.numbers,
        detail=message.body.decode("utf-8", "replace"),
    )
