"""One conversation of a client with the daemon, as a machine without sockets: frames in, messages out.

The daemon's broker holds one Session per connection, the client library one per connection of its own; both run the
tables of this file. It does no I/O, knows no clock and no method.

Theory of operation. TRANSITIONS says which message may follow in which state of the session, by whoever sends it; it
does not know which side we are. Within OPEN, each request lives from its `request` to the one `result` or `error`
that names it. Everything else about it is counted here: ids grow and are never used twice, `seq` has no gaps, and a
`chunk` spends one credit that the client granted.

Messages cross on the wire. So a `cancel` or a `credit` may reach the daemon after it has answered, and is then
dropped in silence; and after its own `bye` a client drops whatever still arrives. No other message is dropped.

Both sides may ping; whoever is asked answers. The machine does not: whether the data of a pong was ever sent is for
whoever sent it to know.

A refused message changes nothing, with one exception: a request that is refused for its content, but whose id can be
read, counts as open, since the client waits for an answer with that id. RemoteProtocolError.fatal tells the cases
apart: a fatal one leaves the session in ERROR for good.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import cast

from enclave.protocol.errors import BUSY_SECONDS, LocalProtocolError, RemoteProtocolError
from enclave.protocol.messages import (
    COUNT_MAX,
    CREDIT_MAX,
    ID_MAX,
    MESSAGE_TYPES,
    PROTOCOL_VERSION,
    PROTOCOL_VERSION_MIN,
    Bye,
    Cancel,
    Chunk,
    Credit,
    Error,
    Hello,
    Limits,
    Message,
    Ping,
    Pong,
    Progress,
    RawMessage,
    Request,
    RequestId,
    Result,
    Welcome,
    chunk_frames,
    parse,
    read_raw,
    refusal,
    to_frames,
)


class Role(Enum):
    """A side of the session."""

    __hash__ = object.__hash__  # members are compared by identity; Enum's own, for pickles, is not C

    CLIENT = "client"
    DAEMON = "daemon"

    @property
    def other(self) -> Role:
        return Role.DAEMON if self is Role.CLIENT else Role.CLIENT


class State(Enum):
    """Whose turn it is."""

    __hash__ = object.__hash__

    NEW = "new"
    """Nothing said; the client says hello."""
    GREETED = "greeted"
    """The daemon says welcome, or why not."""
    OPEN = "open"
    """Requests and answers."""
    CLOSED = "closed"
    """The session has ended as agreed."""
    ERROR = "error"
    """The other side broke the rules; all that is left is to say so."""


class Step(Enum):
    """What a message does to the session: its type, with `error` split by whether it names a request."""

    __hash__ = object.__hash__

    HELLO = "hello"
    WELCOME = "welcome"
    REQUEST = "request"
    CANCEL = "cancel"
    CREDIT = "credit"
    PING = "ping"
    BYE = "bye"
    PROGRESS = "progress"
    CHUNK = "chunk"
    RESULT = "result"
    ERROR = "error"
    """About a request."""
    REFUSAL = "error (no id)"
    """About the session, which it ends."""
    PONG = "pong"


_CLIENT = Role.CLIENT
_DAEMON = Role.DAEMON

TRANSITIONS: Mapping[State, Mapping[tuple[Role, Step], State]] = MappingProxyType(
    {
        State.NEW: {
            (_CLIENT, Step.HELLO): State.GREETED,
            (_CLIENT, Step.PING): State.NEW,
            (_DAEMON, Step.PONG): State.NEW,
            (_DAEMON, Step.REFUSAL): State.CLOSED,
        },
        State.GREETED: {
            (_DAEMON, Step.WELCOME): State.OPEN,
            (_DAEMON, Step.REFUSAL): State.CLOSED,
            (_CLIENT, Step.PING): State.GREETED,
            (_DAEMON, Step.PONG): State.GREETED,
        },
        State.OPEN: {
            (_CLIENT, Step.REQUEST): State.OPEN,
            (_CLIENT, Step.CANCEL): State.OPEN,
            (_CLIENT, Step.CREDIT): State.OPEN,
            (_CLIENT, Step.BYE): State.CLOSED,
            (_CLIENT, Step.PING): State.OPEN,
            (_CLIENT, Step.PONG): State.OPEN,
            (_DAEMON, Step.PROGRESS): State.OPEN,
            (_DAEMON, Step.CHUNK): State.OPEN,
            (_DAEMON, Step.RESULT): State.OPEN,
            (_DAEMON, Step.ERROR): State.OPEN,
            (_DAEMON, Step.REFUSAL): State.CLOSED,
            (_DAEMON, Step.PING): State.OPEN,
            (_DAEMON, Step.PONG): State.OPEN,
        },
        State.CLOSED: {},
        State.ERROR: {
            (_DAEMON, Step.REFUSAL): State.ERROR,
        },
    }
)
"""(who sends what) → the next state; what is not here is not allowed. docs/protocol.md prints this table."""


@dataclass(frozen=True, slots=True)
class Versions:
    """The versions of the protocol that one side speaks, all between the two."""

    oldest: int
    newest: int

    def __str__(self) -> str:
        return f"version {self.newest}" if self.oldest == self.newest else f"versions {self.oldest} to {self.newest}"

    def __contains__(self, version: object) -> bool:
        return isinstance(version, int) and self.oldest <= version <= self.newest

    def agreed(self, other: Versions) -> int | None:
        """The newest version that both speak; None when there is none."""
        newest = min(self.newest, other.newest)
        return newest if newest >= max(self.oldest, other.oldest) else None


SPOKEN = Versions(PROTOCOL_VERSION_MIN, PROTOCOL_VERSION)
"""What this code speaks."""

_WITH_TOKEN = (Request, Cancel, Credit, Bye, Pong)
"""What a client may send with its token only."""


@dataclass(slots=True)
class _OpenRequest:
    """What both sides count of a request."""

    credit: int
    """Chunk messages that may still be sent."""
    seq: int = 0
    """Values sent so far."""


_STEPS: Mapping[type[Message], Step] = MappingProxyType({kind: Step(kind.TYPE) for kind in MESSAGE_TYPES.values()})


def step_of(message: Message) -> Step:
    """The row of TRANSITIONS that a message is looked up in."""
    if isinstance(message, Error) and message.id is None:
        return Step.REFUSAL
    return _STEPS[type(message)]


class Session:
    """The machine. `receive` takes a message's frames, `send` gives them; the caller moves the bytes."""

    def __init__(self, role: Role, limits: Limits | None = None, versions: Versions = SPOKEN) -> None:
        """`limits` are what the daemon accepts; a client learns them from the welcome."""
        self.role = role
        self.limits = limits or Limits()
        self.versions = versions
        self._version: int | None = None
        self._same_bytes: Callable[[bytes, bytes], bool] = bytes.__eq__
        if role is Role.DAEMON:
            from hmac import compare_digest  # a client has no use for it, and it takes long to import

            self._same_bytes = compare_digest
        self._state = State.NEW
        self._token = b""
        self._hello: Hello | None = None
        self._welcome: Welcome | None = None
        self._last_id = 0
        self._open: dict[int, _OpenRequest] = {}

    def __repr__(self) -> str:
        return f"<Session {self.role.value} {self._state.value}, {len(self._open)} open>"

    @property
    def state(self) -> State:
        return self._state

    @property
    def version(self) -> int | None:
        """The version that both go by: known to the daemon from the hello on, to the client from the welcome on."""
        return self._version

    @property
    def token(self) -> bytes:
        """The session's token; empty before the welcome."""
        return self._token

    @property
    def hello(self) -> Hello | None:
        """The client's hello, once said."""
        return self._hello

    @property
    def welcome(self) -> Welcome | None:
        """The daemon's welcome, once said."""
        return self._welcome

    @property
    def open_ids(self) -> tuple[RequestId, ...]:
        """Requests without result or error yet, oldest first."""
        return tuple(RequestId(number) for number in self._open)

    def is_open(self, request_id: int) -> bool:
        """Whether the request still waits for its result or error."""
        return request_id in self._open

    def credit(self, request_id: int) -> int:
        """Chunk messages that may still be sent for an open request; 0 for any other."""
        request = self._open.get(request_id)
        return 0 if request is None else request.credit

    def next_seq(self, request_id: int) -> int:
        """The `seq` of the next chunk; raises LocalProtocolError when the request is not open."""
        request = self._open.get(request_id)
        if request is None:
            raise LocalProtocolError(f"request {request_id} is not open")
        return request.seq

    def next_id(self) -> RequestId:
        """An id that the next request may use."""
        return RequestId(self._last_id + 1)

    # --- sending -----------------------------------------------------------------------------------------------------

    def send(self, message: Message) -> list[bytes]:
        """The frames of a message, which counts as sent from here on; a client's empty token is filled in.

        Raises LocalProtocolError when the message is not allowed now or would be refused; nothing changes then.
        """
        token = self._token if isinstance(message, _WITH_TOKEN) and not message.token and self._token else None
        try:
            target = self._check(self.role, message, has_token=token is not None)
        except RemoteProtocolError as error:
            raise LocalProtocolError.of(error) from error
        if isinstance(message, (Cancel, Credit)) and message.id not in self._open:
            raise LocalProtocolError(f"request {message.id} is not open")
        frames = to_frames(message, self.limits, token if self.role is Role.CLIENT else None)
        self._apply(message, target)
        return frames

    def send_chunk(self, request_id: int, body: bytes, count: int) -> list[bytes]:
        """What `send` gives for the next chunk of a request, without attachments, at a third of the price: most of what
        a daemon says are these. Raises LocalProtocolError."""
        request = self._open.get(request_id)
        if request is None or self._state is not State.OPEN or self.role is not Role.DAEMON:
            raise LocalProtocolError(f"request {request_id} is not open here")
        if request.credit < 1:
            raise LocalProtocolError(f"request {request_id} has no credit left")
        frames = chunk_frames(request_id, request.seq, count, body, self.limits)
        request.credit -= 1
        request.seq += count
        return frames

    def refuse(self, error: RemoteProtocolError) -> list[bytes]:
        """The frames that answer what `receive` raised (daemon's side); afterwards a fatal one's session is over."""
        return self.send(refusal(error))

    # --- receiving ---------------------------------------------------------------------------------------------------

    def receive(self, frames: Sequence[bytes | memoryview]) -> list[Message]:
        """The message in the frames, or nothing when it crossed with ours and has no meaning any more.

        Raises RemoteProtocolError when it cannot be accepted; see there for what to answer.
        """
        if self._state is State.CLOSED:
            return []
        if self._state is State.ERROR:
            raise RemoteProtocolError("the session ended with an error")
        try:
            return self._receive(read_raw(frames))
        except RemoteProtocolError as error:
            if error.fatal:
                self._state = State.ERROR
                self._open.clear()
            raise

    def _receive(self, raw: RawMessage) -> list[Message]:
        if raw.type == Chunk.TYPE and (chunk := self._plain_chunk(raw)) is not None:
            return [chunk]
        refusable = None
        if self.role is Role.DAEMON:
            if raw.type == Hello.TYPE:
                self._agree(raw)
            refusable = self._refusable_request(raw)
        try:
            message = parse(raw, self.limits)
            target = self._check(self.role.other, message, has_token=refusable is not None)
        except RemoteProtocolError as error:
            if refusable is None:
                raise
            self._last_id = refusable
            self._open[refusable] = _OpenRequest(credit=0)
            raise error.about(refusable) from error
        if isinstance(message, (Cancel, Credit)) and message.id not in self._open:
            return []
        self._apply(message, target)
        return [message]

    def _plain_chunk(self, raw: RawMessage) -> Chunk | None:
        """The chunk, when it is one without attachments that may come now: the way back of `send_chunk`, and as cheap.
        None: it has to be looked at more closely."""
        header, rest = raw.header, raw.rest
        request_id, seq, count = header.get("id"), header.get("seq"), header.get("count", 1)
        if type(request_id) is not int or type(seq) is not int or type(count) is not int:
            return None
        if len(rest) != 1 or "attachments" in header or self.role is not Role.CLIENT:
            return None
        request = self._open.get(request_id)
        if request is None or request.credit < 1 or seq != request.seq or self._state is not State.OPEN:
            return None
        if not 1 <= count <= COUNT_MAX or seq + count > ID_MAX or len(rest[0]) > self.limits.body_bytes:
            return None
        request.credit -= 1
        request.seq += count
        return Chunk(id=RequestId(request_id), seq=seq, count=count, body=rest[0])

    def _refusable_request(self, raw: RawMessage) -> RequestId | None:
        """The id of a request that may be refused alone, whatever is wrong with the rest of it."""
        if raw.type != Request.TYPE or self._state is not State.OPEN:
            return None
        request_id = raw.request_id()
        new = request_id is not None and request_id > self._last_id
        return request_id if new and self._is_token(raw.header.get("token")) else None

    # --- the rules, the same for both directions ---------------------------------------------------------------------

    def _check(self, sender: Role, message: Message, *, has_token: bool = False) -> State:
        """The state after the message; raises RemoteProtocolError when it is not allowed. Changes nothing.

        `has_token`: its token is right, and needs no look.
        """
        step = step_of(message)
        target = TRANSITIONS[self._state].get((sender, step))
        if target is None:
            raise _out_of_place(self._state, sender, step)
        if sender is Role.CLIENT:
            if not has_token:
                self._check_token(message)
            if isinstance(message, Request):
                self._check_request(message)
            elif isinstance(message, (Cancel, Credit)):
                self._check_about(message)
        elif isinstance(message, (Chunk, Result, Progress, Error)):
            if message.id is not None:
                self._check_answer(message, message.id)
        elif isinstance(message, Welcome):
            self._check_welcome(message)
        return target

    def _check_token(self, message: Message) -> None:
        if isinstance(message, Ping) and message.token is None:
            return
        if isinstance(message, (*_WITH_TOKEN, Ping)) and not self._is_token(message.token):
            raise RemoteProtocolError("the session token is wrong", code="unauthorised", field="token")

    def _agree(self, raw: RawMessage) -> None:
        """Finds the version to go by, before anything else of the hello is looked at: another may have other fields."""
        version, oldest = raw.header.get("version"), raw.header.get("version_min")
        if not _is_integer(version) or not (oldest is None or _is_integer(oldest)):
            return  # the hello is refused for its types
        theirs = Versions(cast(int, version if oldest is None else oldest), cast(int, version))
        self._version = self.versions.agreed(theirs)
        if self._version is None:
            raise _versions_differ(theirs, self.versions)

    def _check_welcome(self, message: Welcome) -> None:
        if self.role is Role.DAEMON and message.version != self._version:
            raise RemoteProtocolError(f"version: {self._version} was agreed on", field="version")
        if message.version not in self.versions:
            raise _versions_differ(self.versions, Versions(message.version, message.version))

    def _is_token(self, token: object) -> bool:
        return isinstance(token, bytes) and bool(self._token) and self._same_bytes(token, self._token)

    def _check_request(self, message: Request) -> None:
        if message.id <= self._last_id:
            raise RemoteProtocolError(f"id: {message.id} is not above the last one, {self._last_id}", field="id")
        if len(self._open) >= self.limits.open_requests:
            raise RemoteProtocolError(
                f"this session has {len(self._open)} open requests, as many as it may",
                code="busy",
                hint="Wait for one of them to end.",
                numbers={"open_requests": len(self._open), "open_requests_max": self.limits.open_requests},
                retry_after=BUSY_SECONDS,
            )

    def _check_about(self, message: Cancel | Credit) -> None:
        if message.id > self._last_id:
            raise RemoteProtocolError(f"id: request {message.id} was never made", field="id")
        if isinstance(message, Cancel):
            return
        request = self._open.get(message.id)
        if request is not None and request.credit + message.chunks > CREDIT_MAX:
            raise RemoteProtocolError(f"chunks: more than {CREDIT_MAX:,} in all", field="chunks")

    def _check_answer(self, message: Progress | Chunk | Result | Error, request_id: int) -> None:
        request = self._open.get(request_id)
        if request is None:
            raise RemoteProtocolError(f"id: request {request_id} is not open", field="id")
        if not isinstance(message, Chunk):
            return
        if message.seq != request.seq:
            raise RemoteProtocolError(f"seq: expected {request.seq}, got {message.seq}", field="seq")
        if message.seq + message.count > ID_MAX:
            raise RemoteProtocolError("count: too many values", field="count")
        if request.credit < 1:
            raise RemoteProtocolError(f"request {request_id} has no credit left", field="id")

    def _apply(self, message: Message, target: State) -> None:
        self._state = target
        if isinstance(message, Request):
            self._last_id = message.id
            self._open[message.id] = _OpenRequest(credit=message.credit)
        elif isinstance(message, Credit):
            self._open[message.id].credit += message.chunks
        elif isinstance(message, Chunk):
            request = self._open[message.id]
            request.credit -= 1
            request.seq += message.count
        elif isinstance(message, (Result, Error)):
            if message.id is not None:
                del self._open[message.id]
        elif isinstance(message, Hello):
            self._hello = message
        elif isinstance(message, Welcome):
            self._welcome = message
            self._version = message.version
            self._token = message.token
            self.limits = message.limits
        if target in (State.CLOSED, State.ERROR):
            self._open.clear()


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _versions_differ(client: Versions, daemon: Versions) -> RemoteProtocolError:
    return RemoteProtocolError(
        f"the client speaks {client} of the protocol, the daemon {daemon}",
        code="version_mismatch",
        field="version",
        numbers={
            "client": client.newest,
            "client_min": client.oldest,
            "daemon": daemon.newest,
            "daemon_min": daemon.oldest,
        },
    )


def _out_of_place(state: State, sender: Role, step: Step) -> RemoteProtocolError:
    said_hello = state not in (State.NEW, State.GREETED)
    code = "bad_message" if said_hello or sender is Role.DAEMON else "unauthorised"
    return RemoteProtocolError(f"{step.value} from the {sender.value} is not allowed when {state.value}", code=code)
