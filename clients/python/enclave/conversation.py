"""What a client knows of its open calls: the pure half of both clients, between the Session and the socket.

`Conversation` turns calls into frames and incoming frames into Answers; the clients move the frames and wait. No
socket, no clock, no thread.

When the connection is lost, a call whose answer had not begun and whose method may be repeated stays open: it is
*displaced*, and the client asks again on its next connection, once. Every other call ends with `connection_lost`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from enclave.exceptions import ConnectionLostError, EnclaveError, LostRequest, TooLargeError, error_for, error_from
from enclave.protocol.bodies import TextChunk
from enclave.protocol.errors import LocalProtocolError, RemoteProtocolError
from enclave.protocol.messages import (
    Bye,
    Cancel,
    Chunk,
    Credit,
    Error,
    Hello,
    Message,
    Ping,
    Pong,
    Priority,
    Progress,
    Request,
    RequestId,
    Result,
    Welcome,
)
from enclave.protocol.methods import read_chunks
from enclave.protocol.session import SPOKEN, Role, Session, State
from enclave.results import Gathered, finished

if TYPE_CHECKING:
    from enclave.calls import Call

REPEATS_MAX = 1
"""A request that ends its daemon should not end the next one, and the one after it."""


class Answer:
    """The answer to one call as far as it has come."""

    def __init__(self, call: Call, request: Request, begun_at: float) -> None:
        """`begun_at` is the client's clock, in seconds: a deadline runs from there, also when the call is repeated."""
        self.call = call
        self.id: int = request.id
        self.begun_at = begun_at
        self.place: Any = None
        """The client's connection that it is asked on. Set before it is asked there, so that who cancels it either
        finds the new place or is noticed by who asks again."""
        self.result: Any = None
        self.error: EnclaveError | None = None
        self.done = False
        self.displaced = False
        """Whether its connection was lost and it is to be asked again."""
        self.cancelled = False
        """Whether this side asked for its end; what still comes is gathered but not kept for iteration."""
        self.cancel_sent = False
        self.collecting = False
        """Whether nobody iterates any more: chunks are gathered only."""
        self.gathered = Gathered()
        self._has_begun = False
        """Whether a chunk has come: then asking again would not give the same answer."""
        self._repeats = 0
        self._items: deque[tuple[object, bool]] = deque()
        """(what iteration gives, whether it is the last of its message)."""
        self._progress: deque[Progress] = deque()
        self._consumed = 0 if request.credit else 1
        """Chunk messages used up since the last grant; without credit, the first is due when somebody waits."""
        self._grant_at = max(1, request.credit // 2)

    def __repr__(self) -> str:
        if self.error is not None:
            state = f"failed: {self.error.code}"
        elif self.done:
            state = "done"
        elif self.displaced:
            state = "displaced"
        else:
            state = "cancelled" if self.cancelled else "open"
        return f"{self.call.method} {self.id}, {state}"

    @property
    def ends_at(self) -> float | None:
        """When its deadline passes, by the client's clock."""
        return None if self.call.deadline is None else self.begun_at + self.call.deadline

    @property
    def is_repeatable(self) -> bool:
        """Whether asking again is safe and makes sense."""
        if self.done or self._has_begun or self.cancelled or self._repeats >= REPEATS_MAX:
            return False
        return self.call.is_repeatable

    @property
    def has_items(self) -> bool:
        """Whether `take` has something to give."""
        return bool(self._items)

    @property
    def has_news(self) -> bool:
        """Whether who waits for it has something to do."""
        return bool(self._items or self._progress) or self.done or self.displaced

    def take(self) -> list[object]:
        """The next thing that iteration gives; none when another took it."""
        if not self._items:
            return []
        item, last = self._items.popleft()
        self._consumed += last
        return [item]

    def take_progress(self) -> list[Progress]:
        """What the call's `progress` function has not been told yet."""
        # One by one: another thread may be taking in more.
        news: list[Progress] = []
        while self._progress:
            news.append(self._progress.popleft())
        return news

    def collect(self) -> None:
        """From here on chunks are only gathered; those that wait count as used."""
        self.collecting = True
        self._consumed += sum(last for _, last in self._items)
        self._items.clear()

    @property
    def is_credit_due(self) -> bool:
        """Whether it is time to grant more chunk messages."""
        return self._consumed >= self._grant_at and not (self.done or self.cancelled)

    def take_credit(self) -> int:
        """Chunk messages to grant."""
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
        if isinstance(message, Chunk):
            self._feed_chunk(message)
        elif isinstance(message, Progress):
            if self.call.progress is not None:
                self._progress.append(message)
            if self.call.events and not self.collecting and not self.cancelled:
                self._items.append((message, False))
        elif isinstance(message, Result):
            self.result = finished(self.call.method, message, self.gathered)
            self.done = True
        else:
            self.fail(error_of(message))

    def _feed_chunk(self, message: Chunk) -> None:
        self._has_begun = True
        values = read_chunks(self.call.method, message)
        for value in values:
            if isinstance(value, TextChunk):
                self.gathered.add(value)
        if self.collecting or self.cancelled:
            self._consumed += 1
            return
        *others, last = values
        self._items.extend((value, False) for value in others)
        self._items.append((last, True))

    def fail(self, error: EnclaveError) -> None:
        """End the call with an error; what waits for iteration stays readable."""
        if not self.done:
            self.error = error
            self.done = True
            self.displaced = False

    def displace(self) -> None:
        """Its connection is lost; it is to be asked again on another."""
        self.displaced = True
        self._repeats += 1

    def settle(self, request: Request) -> None:
        """It has been asked again, as this request."""
        self.displaced = False
        self.id = request.id

    def lost(self) -> LostRequest:
        """What to say of it when its connection is lost."""
        return LostRequest(id=self.id, method=self.call.method, model=self.call.model, had_begun=self._has_begun)


class Conversation:
    """One session with the daemon and its open calls. What is to be sent stands in `outbox`, in order."""

    def __init__(self, name: str, program: str, priority: Priority) -> None:
        self.outbox: deque[list[bytes]] = deque()
        self._session = Session(Role.CLIENT)
        self._answers: dict[int, Answer] = {}
        self.ending: EnclaveError | None = None
        """Why the conversation is over; None while it is not."""
        self.displaced: list[Answer] = []
        """What is to be asked again in the next one, in the order in which it was asked."""
        self._send(
            Hello(version=SPOKEN.newest, version_min=SPOKEN.oldest, client=name, program=program, priority=priority)
        )

    def __repr__(self) -> str:
        return f"<Conversation {self._session.state.value}, {len(self._answers)} open>"

    @property
    def open_count(self) -> int:
        """Calls whose end is waited for; what is cancelled no longer counts."""
        return sum(not answer.cancelled for answer in list(self._answers.values()))

    @property
    def welcome(self) -> Welcome | None:
        """The daemon's welcome once it is there: from then on calls may begin."""
        return self._session.welcome if self._session.state is State.OPEN else None

    def begin(self, call: Call, now: float) -> Answer:
        """A new answer, whose request goes into the outbox; raises EnclaveError for what may not be sent."""
        answer = Answer(call, self._ask(call, None), now)
        self._answers[answer.id] = answer
        return answer

    def begin_again(self, answer: Answer, now: float) -> None:
        """Ask a displaced call's question here, unless another thread has. Raises EnclaveError, also when its deadline
        has passed."""
        if not answer.displaced:
            return
        left = None if answer.ends_at is None else answer.ends_at - now
        if left is not None and left <= 0:
            raise error_for("deadline")
        answer.settle(self._ask(answer.call, left))
        self._answers[answer.id] = answer
        if answer.cancelled:  # meanwhile
            self._cancel(answer)

    @property
    def unasked(self) -> list[Answer]:
        """What is to be asked again, in its order."""
        return [answer for answer in self.displaced if answer.displaced]

    def hand_over(self) -> list[Answer]:
        """What is to be asked again; from now on in the conversation that takes it."""
        unasked, self.displaced = self.unasked, []
        return unasked

    def adopt(self, displaced: Sequence[Answer], now: float) -> list[Answer]:
        """Ask again, in their order, what was lost with the conversation before; gives those that are open now.

        Of those with the same `supersedes` only the last is asked, the others end as cancelled.
        """
        if self.ending is not None:
            self.displaced = [*displaced, *self.displaced]
            return []
        for answer in _superseded(displaced):
            answer.fail(error_for("cancelled"))
        for answer in displaced:
            try:
                self.begin_again(answer, now)
            except EnclaveError as error:
                answer.fail(error)
        return [answer for answer in displaced if not answer.done]

    def _ask(self, call: Call, deadline: float | None) -> Request:
        limits = self._session.limits
        if len(call.body) > limits.body_bytes:
            raise TooLargeError(
                f"the request has {len(call.body):,} bytes, the daemon takes at most {limits.body_bytes:,}",
                numbers={"size": len(call.body), "size_max": limits.body_bytes},
            )
        request = call.request(self._session.next_id(), deadline)
        try:
            self._send(request)
        except LocalProtocolError as error:
            raise error_from(error) from None
        return request

    def grant(self, answer: Answer) -> None:
        """Send the credit that is due, if any is."""
        if answer.is_credit_due and self.ending is None and answer.id in self._answers:
            self._send(Credit(id=answer.id, chunks=answer.take_credit()))

    def cancel(self, answer: Answer) -> None:
        """Ask for a call's end; does nothing when it has ended or is cancelled already, or is asked elsewhere."""
        if answer.done:
            return
        answer.cancelled = True
        answer.collect()
        if answer.displaced:
            answer.fail(error_for("cancelled"))
        elif self.ending is None and self._answers.get(answer.id) is answer:
            self._cancel(answer)

    def _cancel(self, answer: Answer) -> None:
        if not answer.cancel_sent and self._session.is_open(answer.id):
            answer.cancel_sent = True
            self._send(Cancel(id=RequestId(answer.id)))

    def leave(self) -> None:
        """Say bye; afterwards every open call has ended as cancelled."""
        if self.ending is None and self._session.state is State.OPEN:
            self._send(Bye())
        error = error_for("cancelled", "the client was closed")
        self._end(error, displace=False)
        for answer in self.hand_over():
            answer.fail(error)

    def _send(self, message: Message) -> None:
        self.outbox.append(self._session.send(message))

    def receive(self, frames: Sequence[bytes]) -> list[Answer]:
        """Take in a message; gives the answers that changed. What cannot be understood ends the conversation."""
        if self.ending is not None:
            return []  # nobody is left whom it could be about
        changed: list[Answer] = []
        try:
            for message in self._session.receive(frames):
                changed.extend(self._dispatch(message))
        except RemoteProtocolError as error:
            if error.code == "version_mismatch":
                return self._end(error_from(error), displace=False)
            return self._end(_senseless(error), displace=False)
        return changed

    def _dispatch(self, message: Message) -> list[Answer]:
        if not isinstance(message, (Chunk, Progress, Result, Error)):
            if isinstance(message, Ping):
                self._send(Pong(data=message.data))
            return []
        if message.id is None:
            assert isinstance(message, Error), "all others are about a call"
            return self._end(error_of(message), displace=False)
        answer = self._answers[message.id]
        try:
            answer.feed(message)
        except RemoteProtocolError as error:
            # The frames were in order, so only this call suffers: its body came from elsewhere, a worker perhaps.
            answer.fail(_senseless(error))
            if not isinstance(message, (Result, Error)):
                self._send(Cancel(id=RequestId(message.id)))
        if isinstance(message, (Result, Error)):
            del self._answers[answer.id]
        return [answer]

    def lost(self, error: EnclaveError, *, displace: bool = True) -> list[Answer]:
        """The connection has ended; gives the calls that were open, each displaced or failed."""
        return self._end(error, displace=displace)

    def _end(self, error: EnclaveError, *, displace: bool) -> list[Answer]:
        if self.ending is None:
            self.ending = error
        ended = list(self._answers.values())
        if displace:
            for answer in _superseded(ended):
                answer.fail(error_for("cancelled"))
        displaced = [answer for answer in ended if displace and answer.is_repeatable]
        gone = [answer for answer in ended if not answer.done and answer not in displaced]
        lost = tuple(answer.lost() for answer in gone)
        for answer in displaced:
            answer.displace()
        for answer in gone:
            if isinstance(error, ConnectionLostError):
                answer.fail(ConnectionLostError.about(answer.lost(), error.message, lost))
            else:
                answer.fail(error)
        self.displaced += displaced
        self._answers.clear()
        return ended


def _superseded(answers: Sequence[Answer]) -> list[Answer]:
    """Those behind which another has the same key."""
    latest = {answer.call.supersedes: answer for answer in answers}
    return [answer for answer in answers if answer.call.supersedes and latest[answer.call.supersedes] is not answer]


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
