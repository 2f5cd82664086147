"""`enclave bridge` without its pipes and its socket: what a client's lines become for the daemon, and back. Pure.

bridge_loop.py moves the bytes: it feeds what comes from either side, sends what stands in `outbox`, writes `output`,
and connects when a session is wanted. json_lines.py has the translation of a single message.

Theory of operation. Each line of the client is taken in turn. One that needs a session where there is none waits, and
the lines behind it with it, until the daemon's welcome is there or is not to be had. Two things go to the daemon only
when the lines before them have been *written*, so that a client that reads slowly is a slow client to the daemon too:
the credit for chunks, and the pongs.

Every request with a usable id gets exactly one `result` or `error` line with that id, whatever happens: refused here,
by the daemon, or lost with its connection or session. Nothing is asked twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from enclave.protocol.codec import encode
from enclave.protocol.errors import LocalProtocolError, RemoteProtocolError
from enclave.protocol.messages import (
    CREDIT_INITIAL,
    CREDIT_MAX,
    Bye,
    Cancel,
    Chunk,
    ClientMessage,
    Credit,
    DaemonMessage,
    Error,
    Hello,
    Limits,
    Message,
    Ping,
    Pong,
    Progress,
    Request,
    RequestId,
    Result,
    Welcome,
    failure,
    refusal,
    to_frames,
)
from enclave.protocol.packing import MIB
from enclave.protocol.session import SPOKEN, Role, Session, State, Versions
from enclave_cli.json_lines import Line, LineSplitter, read_line, to_line, to_message

if TYPE_CHECKING:
    from enclave.exceptions import EnclaveError

OUTPUT_BYTES_MAX = MIB
"""Lines that wait to be written; above it nothing more is taken from the daemon, which pauses in turn."""
REFUSALS_BYTES_MAX = 2 * MIB
"""Above it the client's lines are not read either: only errors about them can bring so much together."""
WRITE_BYTES_MAX = 64 * 1024
"""Given out to be written at once: what a pipe of Linux holds."""
ENDLESS_METHODS = frozenset({"events.subscribe"})
"""Their answers end by a cancel only."""
LINE_HINT = "Correct the program that writes the lines; docs/bridge.md says what a line may hold, and when."
GRANT_AT = CREDIT_INITIAL // 2
"""Chunk lines that are written before new credit is granted."""


@dataclass(slots=True, eq=False)
class _Open:
    """A request without a `result` or `error` line."""

    id: RequestId
    method: str
    grants: bool
    """Whether the bridge grants its credit, not the client."""
    is_cancelled: bool = False
    """Whether the bridge has asked for its end, which it would not come to by itself."""
    written: int = 0
    """Chunk lines that were written and not granted anew."""
    given_up: bool = False
    """Whether its end has been told already: what still comes is dropped."""


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    """A message that waits for a session."""

    message: Hello | Request | Ping
    request_id: RequestId | None
    grants: bool


@dataclass(frozen=True, slots=True, eq=False)
class _Written:
    """A line for standard output."""

    data: bytes
    chunk_of: _Open | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """A ping of the daemon, in its place among the lines."""

    data: bytes
    session: Session


class Bridge:
    """The machine. After every call, `outbox`, `waiting_bytes` and `wants_…` and `is_…` say what to do."""

    def __init__(self, hello: Hello) -> None:
        """`hello` is what is said for a client that does not say it. Raises LocalProtocolError when it cannot be."""
        to_frames(hello, Limits())
        self._own = self._hello = hello
        self.outbox: deque[list[bytes]] = deque()
        """Messages to the daemon, in order."""
        self.waiting_bytes = 0
        """Of lines that are still to be written."""
        self.was_welcomed = False
        """Whether any session has been open."""
        self._lines = LineSplitter()
        self._input_ended = False
        self._left = False
        self._waiting: _Waiting | None = None
        self._session: Session | None = None
        self._open: dict[int, _Open] = {}
        self._pings: list[bytes] = []
        """Data of the client's pings that were not answered yet."""
        self._last_id = 0
        """Of this session's requests, refused ones too."""
        self._highest_id = 0
        """Of all requests ever: what names one of them and comes late has crossed its end."""
        self._output: deque[_Written | _Asked] = deque()
        # Invariant: what stands first in the output is a line.
        self._written_bytes = 0
        """Of the first line."""

    def __repr__(self) -> str:
        state = "no session" if self._session is None else self._session.state.value
        return f"<Bridge {state}, {len(self._open)} open, {self.waiting_bytes} bytes wait>"

    # --- what is to be done -------------------------------------------------------------------------------------------

    @property
    def has_session(self) -> bool:
        """Whether a hello was said that no end has followed."""
        return self._session is not None

    @property
    def is_greeting(self) -> bool:
        """Whether a hello was said and its welcome has not come."""
        return self._session is not None and self._session.state is not State.OPEN

    @property
    def wants_session(self) -> bool:
        """Whether to connect, if need be, and to call `begin`, or `unreachable` where that fails."""
        return self._waiting is not None and self._session is None

    @property
    def wants_input(self) -> bool:
        """Whether to read what the client writes."""
        if self._input_ended or self._left or self._waiting is not None:
            return False
        return self.waiting_bytes <= REFUSALS_BYTES_MAX

    @property
    def wants_frames(self) -> bool:
        """Whether to read what the daemon sends. A welcome is waited for by the clock, and so never kept waiting."""
        return not self._left and (self.is_greeting or self.waiting_bytes <= OUTPUT_BYTES_MAX)

    @property
    def is_done(self) -> bool:
        """Whether nothing more will come, but for what waits to be written."""
        return self._left or (self._is_read_up and not self._open and not self._pings)

    @property
    def _is_read_up(self) -> bool:
        return self._input_ended and not self._lines and self._waiting is None

    # --- the client's side --------------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Take in what the client wrote."""
        self._lines.feed(data)
        self._proceed()

    def end_input(self) -> None:
        """The client writes nothing more; what is open comes to its end."""
        self._lines.end()
        self._input_ended = True
        self._proceed()

    def output(self) -> bytes:
        """What is to be written next, at most WRITE_BYTES_MAX."""
        pieces: list[bytes | memoryview] = []
        room, start = WRITE_BYTES_MAX, self._written_bytes
        for item in self._output:
            if isinstance(item, _Written):
                piece = memoryview(item.data)[start : start + room]
                pieces.append(piece)
                room, start = room - len(piece), 0
            if room <= 0:
                break
        return b"".join(pieces)

    def written(self, count: int) -> None:
        """So many bytes of the output have been written."""
        self.waiting_bytes -= count
        self._written_bytes += count
        while self._output:
            item = self._output[0]
            if isinstance(item, _Asked):
                self._output.popleft()
                if item.session is self._session:
                    self._send(Pong(data=item.data))
                continue
            if self._written_bytes < len(item.data):
                break
            self._output.popleft()
            self._written_bytes -= len(item.data)
            if item.chunk_of is not None:
                self._read(item.chunk_of)

    def _proceed(self) -> None:
        """Takes lines as long as none has to wait."""
        while self._waiting is None and not self._left and self._lines:
            self._take(self._lines.take())
        if self._is_read_up:
            # Nobody is left to grant anything: without this, an answer beyond its credit would never end.
            for request in self._open.values():
                if not request.grants:
                    request.grants = True
                    self._grant(request, CREDIT_INITIAL)
                if request.method in ENDLESS_METHODS and not request.is_cancelled:
                    request.is_cancelled = True
                    self._send(Cancel(id=request.id))

    def _take(self, data: bytes | None) -> None:
        if data is None:
            bytes_max = self._lines.line_bytes_max
            self._refuse(
                RemoteProtocolError(
                    f"the line has more than {bytes_max:,} bytes", code="too_large", numbers={"bytes_max": bytes_max}
                ),
                about_line=self._lines.number,
            )
            return
        if not data.strip():
            return
        request_id = None
        try:
            line = read_line(data)
            request_id = self._new_id(line)
            self._obey(self._message(line), request_id, grants=line.values.get("credit") is None)
        except (RemoteProtocolError, LocalProtocolError) as error:
            self._refuse(error, request_id, about_line=self._lines.number)

    def _new_id(self, line: Line) -> RequestId | None:
        """The id under which a request is answered, whatever is wrong with the rest of it."""
        request_id = line.request_id()
        if request_id is None or request_id <= self._last_id:
            return None
        self._last_id = request_id
        self._highest_id = max(self._highest_id, request_id)
        return request_id

    def _message(self, line: Line) -> ClientMessage:
        if line.type != Hello.TYPE:
            return to_message(line)
        defaults = encode(self._own)
        if line.values.get("version") is not None:
            defaults.pop("version_min", None)
        hello = to_message(line, defaults)
        assert isinstance(hello, Hello)
        return _agreed(hello)

    def _obey(self, message: ClientMessage, request_id: RequestId | None, *, grants: bool) -> None:
        """Raises RemoteProtocolError or LocalProtocolError for what cannot be sent; nothing of it is, then."""
        match message:
            case Request() if request_id is None:
                raise RemoteProtocolError(f"id: {message.id} is not above the last one, {self._last_id}", field="id")
            case Hello() if self._session is not None:
                raise RemoteProtocolError("hello: a session is open already", field="type")
            case Hello():
                to_frames(message, Limits())
                self._hello = message
                self._waiting = _Waiting(message, None, grants)
            case Request() | Ping() if self._session is None:
                self._waiting = _Waiting(message, request_id, grants)
            case Request() | Ping():
                self._pass_on(message, grants=grants)
            case Cancel() | Credit():
                if message.id in self._open:
                    self._send(message)
                elif message.id > self._highest_id:
                    raise RemoteProtocolError(f"id: request {message.id} was never made", field="id")
            case Bye():
                self._left = True
                self._lines.clear()
            case Pong():
                raise RemoteProtocolError("pong: the bridge answers the daemon's pings by itself", field="type")

    def _pass_on(self, message: Request | Ping, *, grants: bool) -> None:
        self._send(message)
        if isinstance(message, Request):
            self._open[message.id] = _Open(RequestId(message.id), message.method, grants)
        else:
            self._pings.append(message.data)

    def _refuse(
        self,
        error: RemoteProtocolError | LocalProtocolError,
        request_id: RequestId | None = None,
        *,
        about_line: int | None = None,
    ) -> None:
        refused = RemoteProtocolError(
            error.message,
            code=error.code,
            field=error.field,
            hint=LINE_HINT if request_id is None and error.code == "bad_message" else None,
            numbers=error.numbers,
            retry_after=error.retry_after,
        )
        if request_id is None:
            self._print(refusal(refused), about_line=about_line)
        else:
            self._print(refusal(refused.about(request_id)))

    # --- the connection -----------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """There is a connection: say hello."""
        self._session = Session(Role.CLIENT)
        self._send(self._hello)

    def unsay(self) -> None:
        """The connection went before the welcome came; it may be tried once more."""
        self._end_session()

    def unreachable(self, error: EnclaveError) -> None:
        """There is no daemon to be had: the line that wanted it is answered with the error."""
        waiting, self._waiting = self._waiting, None
        self._print(_as_message(error, None if waiting is None else waiting.request_id))
        self._end_session()
        self._proceed()

    def lost(self) -> None:
        """The connection is gone, and with it what was open."""
        for request in self._end_session():
            self._print(failure(request.id, "connection_lost", "the connection to the daemon was lost"))
        self._proceed()

    def leave(self) -> None:
        """Say bye, if there is a session."""
        session = self._session
        self._end_session()
        if session is not None and session.state is State.OPEN:
            self.outbox.append(session.send(Bye()))

    def _end_session(self) -> list[_Open]:
        """Forgets the session; gives the requests whose end is still to be told."""
        left = [request for request in self._open.values() if not request.given_up]
        self._session = None
        self.outbox.clear()
        self._open.clear()
        self._pings.clear()
        self._last_id = 0
        return left

    # --- the daemon's side --------------------------------------------------------------------------------------------

    def receive(self, frames: Sequence[bytes]) -> None:
        """Take in a message of the daemon. Afterwards `has_session` says whether the connection is still of use."""
        session = self._session
        assert session is not None, "frames come in a session only"
        try:
            for message in session.receive(frames):
                self._dispatch(session, message)
        except RemoteProtocolError as error:
            self._end(_senseless(error))
        self._proceed()

    def _dispatch(self, session: Session, message: Message) -> None:
        match message:
            case Welcome():
                self.was_welcomed = True
                self._print(message)
                self._welcomed()
            case Ping():
                self._output.append(_Asked(message.data, session))
                self.written(0)
            case Pong():
                # The daemon also sends some without being asked, to find out whether somebody is there.
                if message.data in self._pings:
                    self._pings.remove(message.data)
                    self._print(message)
            case Error() if message.id is None:
                self._end(message)
            case Progress() | Chunk() | Result() | Error():
                assert message.id is not None
                self._answer(self._open[message.id], message)
            case _:
                raise AssertionError("the session lets a daemon's messages through only")

    def _welcomed(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is None or isinstance(waiting.message, Hello):
            return
        self._last_id = max(self._last_id, waiting.request_id or 0)
        try:
            self._pass_on(waiting.message, grants=waiting.grants)
        except LocalProtocolError as error:
            self._refuse(error, waiting.request_id)

    def _answer(self, request: _Open, message: Progress | Chunk | Result | Error) -> None:
        ends = isinstance(message, (Result, Error))
        if ends:
            del self._open[request.id]
        if request.given_up:
            return
        try:
            self._print(message, request=request)
        except RemoteProtocolError as error:
            # The frames were in order, so only this request suffers: its body came from elsewhere, a worker perhaps.
            self._print(replace(_senseless(error), id=request.id))
            request.given_up = True
            if not ends:
                self._send(Cancel(id=request.id))

    def _end(self, error: Error) -> None:
        """The session is over, and so is all that was open or waited for it."""
        self._print(error)
        waiting, self._waiting = self._waiting, None
        ended = [request.id for request in self._end_session()]
        if waiting is not None and waiting.request_id is not None:
            ended.append(waiting.request_id)
        for request_id in ended:
            self._print(replace(error, id=request_id))

    # --- inside -------------------------------------------------------------------------------------------------------

    def _send(self, message: ClientMessage) -> None:
        assert self._session is not None
        self.outbox.append(self._session.send(message))

    def _print(self, message: DaemonMessage, *, request: _Open | None = None, about_line: int | None = None) -> None:
        """Raises RemoteProtocolError when its body makes no sense."""
        data = to_line(message, "" if request is None else request.method, about_line=about_line)
        line = _Written(data, request if isinstance(message, Chunk) else None)
        self._output.append(line)
        self.waiting_bytes += len(line.data)

    def _read(self, request: _Open) -> None:
        """A chunk of the request was written."""
        request.written += 1
        if request.grants and request.written >= GRANT_AT and self._open.get(request.id) is request:
            self._grant(request, request.written)

    def _grant(self, request: _Open, chunks: int) -> None:
        assert self._session is not None
        chunks = min(chunks, CREDIT_MAX - self._session.credit(request.id))
        request.written = 0
        if chunks > 0:
            self._send(Credit(id=request.id, chunks=chunks))


def _agreed(hello: Hello) -> Hello:
    """The client's hello with the versions that the bridge speaks as well; raises RemoteProtocolError without any."""
    oldest = hello.version if hello.version_min is None else hello.version_min
    newest = Versions(oldest, hello.version).agreed(SPOKEN)
    if newest is None:
        raise RemoteProtocolError(
            f"version: the client speaks {Versions(oldest, hello.version)} of the protocol, the bridge {SPOKEN}",
            code="version_mismatch",
            field="version",
        )
    return replace(hello, version=newest, version_min=max(oldest, SPOKEN.oldest))


def _senseless(error: RemoteProtocolError) -> Error:
    if error.code == "version_mismatch":
        return refusal(error)
    return replace(
        failure(None, "bad_message", f"the daemon's answer makes no sense: {error.message}"), field=error.field
    )


def _as_message(error: EnclaveError, request_id: RequestId | None) -> Error:
    return Error(
        id=request_id,
        code=error.code,
        message=error.message,
        hint=error.hint,
        retryable=error.retryable,
        retry_after=error.retry_after,
        field=error.field,
        numbers=error.numbers,
        body=error.detail.encode("utf-8", "replace"),
    )
