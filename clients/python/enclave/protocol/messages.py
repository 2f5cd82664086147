"""The messages of the wire: frozen dataclasses, and their way to frames and back.

A message is a header frame (a MessagePack map with `type`), for some types a body frame (opaque here: a sequence of
MessagePack values for whoever answers), and attachment frames that the header lists. Session (session.py) says which
message may come when; methods.py says what is in a body.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, ClassVar, NewType, TypeAlias, cast

from enclave.protocol.codec import Bounds, check, decode, elsewhere, encode
from enclave.protocol.errors import LocalProtocolError, Number, RemoteProtocolError, error_code
from enclave.protocol.packing import BODY_LIMITS, HEADER_LIMITS, MIB, pack, unpack
from enclave.protocol.records import record

PROTOCOL_VERSION = 1
"""The newest version of the wire that this code speaks: a number of its own, apart from every package's."""
PROTOCOL_VERSION_MIN = 1
"""The oldest one."""

RequestId = NewType("RequestId", int)
"""Chosen by the client, growing within a session."""

ID_MAX = 2**53 - 1
"""Ids stay exact in languages whose only number is a double."""

TOKEN_BYTES = 16
PING_DATA_BYTES_MAX = 32
CREDIT_INITIAL = 64
"""Chunks that may be under way unread: at 100 tokens/s over half a second, at 512 bytes each 32 KiB a stream."""
CREDIT_MAX = 65_536
NAME_LENGTH_MAX = 256
REFERENCE_LENGTH_MAX = 4096
"""A model reference may be a path; 4,096 bytes is PATH_MAX on Linux."""
SECONDS_MAX = 366 * 24 * 3600.0
COUNT_MAX = 2**31 - 1

Id: TypeAlias = Annotated[int, Bounds(1, ID_MAX)]
Name: TypeAlias = Annotated[str, Bounds(1, NAME_LENGTH_MAX)]
Reference: TypeAlias = Annotated[str, Bounds(1, REFERENCE_LENGTH_MAX)]
Seconds: TypeAlias = Annotated[float, Bounds(0, SECONDS_MAX)]
Count: TypeAlias = Annotated[int, Bounds(0, COUNT_MAX)]
Total: TypeAlias = Annotated[int, Bounds(0, ID_MAX)]
"""A count or an amount of bytes without a nearer bound."""
Token: TypeAlias = Annotated[bytes, Bounds(TOKEN_BYTES, TOKEN_BYTES)]


class Priority(StrEnum):
    """Work of a later class waits while an earlier one has some."""

    INTERACTIVE = "interactive"
    NORMAL = "normal"
    BACKGROUND = "background"


class Stage(StrEnum):
    """Why a request has no answer yet."""

    QUEUED = "queued"
    LOADING = "loading"
    PROMPT = "prompt"
    TRANSFER = "transfer"
    """Files are on their way: the stage of a pull."""


@record
class Limits:
    """What one session may send, in the welcome; more is refused with `too_large` or `busy`."""

    body_bytes: Annotated[int, Bounds(1, ID_MAX)] = BODY_LIMITS.frame_bytes
    """Of one message's body."""
    attachment_bytes: Annotated[int, Bounds(1, ID_MAX)] = 64 * MIB
    """Of one attachment."""
    attachments: Annotated[int, Bounds(0, 1024)] = 64
    """Of one message."""
    open_requests: Annotated[int, Bounds(1, COUNT_MAX)] = 256
    """Requests without result or error yet."""
    queued_bytes: Annotated[int, Bounds(1, ID_MAX)] = 128 * MIB
    """Bodies and attachments, together, of the requests that nobody works on yet."""
    unread_bytes: Annotated[int, Bounds(1, ID_MAX)] = 16 * MIB
    """What the daemon keeps of answers that the client has not read; see Window."""


@record
class AttachmentInfo:
    """An attachment frame, announced in the header: what it is and how long."""

    kind: Name
    """A media type (`image/png`) or an array's type and shape (`float32[2,384]`)."""
    size_bytes: Total
    """Of the frame."""


@record
class Hello:
    """client → daemon, first: who is there and which protocol it speaks."""

    TYPE: ClassVar[str] = "hello"
    version: Annotated[int, Bounds(0, COUNT_MAX)]
    """The newest version that the client speaks."""
    version_min: Annotated[int, Bounds(0, COUNT_MAX)] | None = None
    """The oldest one; only `version` when unset."""
    client: Name
    """The name people see in `enclave ps` and `enclave why`."""
    program: Annotated[str, Bounds(0, REFERENCE_LENGTH_MAX)] = ""
    """Library and version, for the log."""
    features: Annotated[tuple[Name, ...], Bounds(0, 64)] = ()
    """What the client would like to use of what is not in every daemon of this version."""
    priority: Priority = Priority.NORMAL
    """Of requests that don't say their own."""


@record
class Welcome:
    """daemon → client: the session is open; its token goes into each later message."""

    TYPE: ClassVar[str] = "welcome"
    version: Annotated[int, Bounds(0, COUNT_MAX)]
    """The newest version that both speak: from now on both go by it."""
    token: Token = dataclasses.field(repr=False)
    """Sixteen random bytes; the client sends them with all that follows."""
    server: Annotated[str, Bounds(0, NAME_LENGTH_MAX)]
    """The daemon's version."""
    pid: Count
    """Of the daemon."""
    features: Annotated[tuple[Name, ...], Bounds(0, 64)] = ()
    """Those of the hello's that this daemon has."""
    limits: Limits = Limits()


@record
class Request:
    """client → daemon: a call of a method. What the daemon needs stands here, the rest in the body."""

    TYPE: ClassVar[str] = "request"
    id: Id
    """Chosen by the client, above all it has used in this session."""
    token: bytes = dataclasses.field(default=b"", repr=False)
    """The session's, from the welcome."""
    method: Name
    """One of the table of methods."""
    model: Reference | None = None
    """A reference: a name, an alias, `source:name` or the path of a file. Unset: the daemon's default model."""
    priority: Priority | None = None
    """Unset: the session's."""
    deadline: Annotated[float, Bounds(0, SECONDS_MAX)] | None = None
    """Seconds from now within which the whole answer is wanted."""
    keep_alive: Annotated[float, Bounds(0, SECONDS_MAX)] | None = None
    """Seconds that the model would like to stay loaded after this request. Has no effect yet."""
    supersedes: Name | None = None
    """A key: an older request of this session with the same key is cancelled."""
    resumable_seconds: Seconds = 0.0
    """How long the request goes on after its client vanished. Has no effect yet."""
    context: Annotated[int, Bounds(1, COUNT_MAX)] | None = None
    """Tokens of context wished for; unset never causes a reload."""
    max_tokens: Annotated[int, Bounds(0, COUNT_MAX)] | None = None
    """Of the answer; unset: as many as the context has room for."""
    choices: Annotated[int, Bounds(1, 128)] = 1
    """Answers wanted for the one prompt."""
    credit: Annotated[int, Bounds(0, CREDIT_MAX)] = CREDIT_INITIAL
    """Chunk messages that may be sent before the client grants more."""
    backend: Name | None = None
    """Only this backend will do."""
    adapter: Reference | None = None
    """A reference. Answered `unsupported` yet; so are the next three."""
    draft: Reference | None = None
    """A smaller model that guesses ahead."""
    projector: Reference | None = None
    """What turns images into the model's own input."""
    prefix: Name | None = None
    """A beginning kept by `prefix`."""
    attachments: Annotated[tuple[AttachmentInfo, ...], Bounds(0, 1024)] = ()
    """One for each frame behind the body, in order."""
    body: bytes = elsewhere(b"")
    frames: tuple[bytes, ...] = elsewhere(())
    """The attachments, as the header announces them."""


@record
class Cancel:
    """client → daemon: the answer is not wanted any more. Its result or error still comes."""

    TYPE: ClassVar[str] = "cancel"
    id: Id
    """Of the request."""
    token: bytes = dataclasses.field(default=b"", repr=False)
    """The session's, from the welcome."""


@record
class Credit:
    """client → daemon: so many more chunk messages may be sent for the request."""

    TYPE: ClassVar[str] = "credit"
    id: Id
    """Of the request."""
    token: bytes = dataclasses.field(default=b"", repr=False)
    """The session's, from the welcome."""
    chunks: Annotated[int, Bounds(1, CREDIT_MAX)]
    """Added to what it has left."""


@record
class Ping:
    """either way: are you there, and have you read what I sent before this? Answered with pong at once."""

    TYPE: ClassVar[str] = "ping"
    token: bytes | None = dataclasses.field(default=None, repr=False)
    """From a client; may be left out before the welcome."""
    data: Annotated[bytes, Bounds(0, PING_DATA_BYTES_MAX)] = b""
    """Comes back in the pong."""


@record
class Bye:
    """client → daemon: the session ends; what it has open is cancelled."""

    TYPE: ClassVar[str] = "bye"
    token: bytes = dataclasses.field(default=b"", repr=False)
    """The session's, from the welcome."""


@record
class Progress:
    """daemon → client: why the request waits, and for how much more."""

    TYPE: ClassVar[str] = "progress"
    id: Id
    """Of the request."""
    stage: Stage
    """What it waits for."""
    position: Count | None = None
    """In the queue, counted from 1."""
    ahead: Count | None = None
    """Requests that will be served first."""
    fraction: Annotated[float, Bounds(0, 1)] | None = None
    """Of the load that is done."""
    done: Total | None = None
    """Bytes of a load or a transfer, tokens of a prompt."""
    total: Total | None = None
    """What `done` will be in the end."""
    reason: Annotated[str, Bounds(0, REFERENCE_LENGTH_MAX)] | None = None
    """`loading`, `busy` or `memory`: what a queued request waits for."""


@record
class Chunk:
    """daemon → client: `count` values of the answer, one after the other in the body."""

    TYPE: ClassVar[str] = "chunk"
    id: Id
    """Of the request."""
    seq: Total
    """Values of this request sent before this message, so a gap shows."""
    count: Annotated[int, Bounds(1, COUNT_MAX)] = 1
    """Values in the body."""
    attachments: Annotated[tuple[AttachmentInfo, ...], Bounds(0, 1024)] = ()
    """One for each frame behind the body, in order."""
    body: bytes = elsewhere(b"")
    frames: tuple[bytes, ...] = elsewhere(())


@record
class Result:
    """daemon → client: the request is done. The header is its receipt, the body the method's result."""

    TYPE: ClassVar[str] = "result"
    id: Id
    """Of the request."""
    model: Reference | None = None
    """Which one answered, by its canonical name."""
    model_hash: Name | None = None
    """Which file it was: its hash, or `file:` with device, inode, size and time of change until that is known."""
    backend: Name | None = None
    """By name."""
    device: Name | None = None
    """By name."""
    instance: Name | None = None
    """By id, as in `instances.list`."""
    queued_seconds: Seconds | None = None
    """From its arrival to its dispatch, without the load."""
    loading_seconds: Seconds | None = None
    """Zero when the model was there already."""
    prompt_seconds: Seconds | None = None
    """Evaluating the prompt."""
    decoding_seconds: Seconds | None = None
    """Making the answer."""
    preempted: Count | None = None
    """How often the request was parked for a more urgent one."""
    charged_seconds: Annotated[float, Bounds(0)] | None = None
    """Of the device, as the scheduler's fairness counts them."""
    context: Count | None = None
    """Tokens of context that the sequence had."""
    attachments: Annotated[tuple[AttachmentInfo, ...], Bounds(0, 1024)] = ()
    """One for each frame behind the body, in order."""
    body: bytes = elsewhere(b"")
    frames: tuple[bytes, ...] = elsewhere(())


@record
class Error:
    """daemon → client: the request failed; without id: the session is over."""

    TYPE: ClassVar[str] = "error"
    id: Id | None = None
    """Of the request; unset when it is about the session."""
    code: Name
    """Stable, for programs."""
    message: Annotated[str, Bounds(0, 4096)] = ""
    """The daemon's own words; what came from a model or a prompt is in the body only."""
    hint: Annotated[str, Bounds(0, 4096)] = ""
    """What a person can do."""
    retryable: bool = False
    """Whether the same request may succeed later."""
    retry_after: Seconds | None = None
    """Seconds after which trying again makes sense."""
    field: Annotated[str, Bounds(0, NAME_LENGTH_MAX)] | None = None
    """Of the request, for bad_request."""
    numbers: Annotated[dict[str, Number], Bounds(0, 64)] = dataclasses.field(default_factory=dict[str, Number])
    """The figures in the message, for programs."""
    body: bytes = elsewhere(b"")
    """UTF-8 text from outside the daemon, such as a worker's last words; often empty."""


@record
class Pong:
    """either way: yes, and everything before that ping has been read."""

    TYPE: ClassVar[str] = "pong"
    token: bytes | None = dataclasses.field(default=None, repr=False)
    """From a client."""
    data: Annotated[bytes, Bounds(0, PING_DATA_BYTES_MAX)] = b""
    """The ping's."""


ClientMessage: TypeAlias = Hello | Request | Cancel | Credit | Bye | Ping | Pong
DaemonMessage: TypeAlias = Welcome | Progress | Chunk | Result | Error | Ping | Pong
Message: TypeAlias = ClientMessage | DaemonMessage

CLIENT_MESSAGES: tuple[type[ClientMessage], ...] = (Hello, Request, Cancel, Credit, Bye, Ping, Pong)
DAEMON_MESSAGES: tuple[type[DaemonMessage], ...] = (Welcome, Progress, Chunk, Result, Error, Ping, Pong)
MESSAGE_TYPES: dict[str, type[Message]] = {kind.TYPE: kind for kind in (*CLIENT_MESSAGES, *DAEMON_MESSAGES)}

_WITH_BODY = (Request, Chunk, Result, Error)
_WITH_ATTACHMENTS = (Request, Chunk, Result)


class RawMessage:
    """A message whose header is read as a map, and no further: enough to know whom to answer."""

    __slots__ = ("header", "rest", "type")

    def __init__(self, header: dict[str, object], rest: tuple[bytes, ...]) -> None:
        self.header = header
        self.rest = rest
        value = header.get("type")
        self.type = value if isinstance(value, str) else ""

    def request_id(self) -> RequestId | None:
        """The id in the header if it is a possible one."""
        value = self.header.get("id")
        if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= ID_MAX:
            return RequestId(value)
        return None


def read_raw(frames: Sequence[bytes | memoryview]) -> RawMessage:
    """Frames to a header map of a known type; raises RemoteProtocolError."""
    if not frames:
        raise RemoteProtocolError("a message has at least a header frame")
    header = unpack(frames[0], HEADER_LIMITS, "header")
    if not isinstance(header, dict):
        raise RemoteProtocolError("the header is not a map", field="type")
    raw = RawMessage(cast("dict[str, object]", header), tuple(map(bytes, frames[1:])))
    if raw.type not in MESSAGE_TYPES:
        problem = "unknown message type" if "type" in raw.header else "missing"
        raise RemoteProtocolError(f"type: {problem}", field="type")
    return raw


def parse(raw: RawMessage, limits: Limits) -> Message:
    """The typed message; raises RemoteProtocolError naming the field at fault."""
    kind, rest = MESSAGE_TYPES[raw.type], raw.rest
    beside: dict[str, object] = {}
    if issubclass(kind, _WITH_BODY) and rest:
        beside["body"] = rest[0]
        if issubclass(kind, _WITH_ATTACHMENTS):
            beside["frames"] = rest[1:]
    message = decode(kind, raw.header, beside=beside)
    _check_rest(message, rest, limits)
    return message


def _check_rest(message: Message, rest: Sequence[bytes], limits: Limits) -> None:
    """Raises RemoteProtocolError when the frames behind the header are not those that it announces, or too large."""
    if not isinstance(message, _WITH_BODY):
        if rest:
            raise RemoteProtocolError(f"a {message.TYPE} has a header frame only, got {len(rest)} more")
        return
    if not rest:
        raise RemoteProtocolError(f"a {message.TYPE} has a body frame, even if it is empty", field="body")
    announced = message.attachments if isinstance(message, _WITH_ATTACHMENTS) else ()
    if not announced and len(rest) == 1 and len(rest[0]) <= min(limits.body_bytes, limits.queued_bytes):
        return  # most are so
    body, *attachments = rest
    _check_size("the body", len(body), limits.body_bytes, "body")
    _check_size("the number of attachments", max(len(announced), len(attachments)), limits.attachments, "attachments")
    if [info.size_bytes for info in announced] != [len(frame) for frame in attachments]:
        raise RemoteProtocolError("attachments: the frames are not those that the header lists", field="attachments")
    for frame in attachments:
        _check_size("an attachment", len(frame), limits.attachment_bytes, "attachments")
    if isinstance(message, Request):
        _check_size("the request", sum(map(len, rest)), limits.queued_bytes, "attachments" if attachments else "body")


def _check_size(what: str, size: int, maximum: int, name: str) -> None:
    if size > maximum:
        raise RemoteProtocolError(
            f"{what} is {size:,}, at most {maximum:,} is allowed",
            code="too_large",
            field=name,
            numbers={"size": size, "size_max": maximum},
        )


SMALL_HEADER_BYTES = 1024
"""A header of typed values that is this short as a whole cannot break a limit in one of its parts."""


def to_frames(message: Message, limits: Limits, token: bytes | None = None) -> list[bytes]:
    """The frames of a message, with a `token` in place of its own. Raises LocalProtocolError when the other side would
    refuse them."""
    if type(message) is Chunk and not message.attachments and not message.frames:
        return chunk_frames(message.id, message.seq, message.count, message.body, limits)
    values = encode(message)
    if token is not None:
        values["token"] = token
    header = pack({"type": message.TYPE, **values})
    rest: list[bytes] = [message.body] if isinstance(message, _WITH_BODY) else []
    if isinstance(message, _WITH_ATTACHMENTS):
        rest.extend(message.frames)
    try:
        if len(header) <= SMALL_HEADER_BYTES:
            check(type(message), values)
            _check_rest(message, rest, limits)
        else:
            parse(read_raw([header, *rest]), limits)
    except RemoteProtocolError as error:
        raise LocalProtocolError.of(error, f"{message.TYPE}: {error.message}") from error
    return [header, *rest]


def chunk_frames(request_id: int, seq: int, count: int, body: bytes, limits: Limits) -> list[bytes]:
    """The frames of a chunk without attachments. Most messages are these, one for each token, and the general way costs
    ten times as much. Raises LocalProtocolError when the other side would refuse them."""
    if not (1 <= request_id <= ID_MAX and seq >= 0 and 1 <= count <= COUNT_MAX and seq + count <= ID_MAX):
        raise LocalProtocolError("chunk: id, seq or count is out of range")
    if len(body) > limits.body_bytes:
        raise LocalProtocolError(f"chunk: the body is {len(body):,} bytes", code="too_large", field="body")
    header: dict[str, object] = {"type": Chunk.TYPE, "id": request_id, "seq": seq}
    if count != 1:
        header["count"] = count
    return [pack(header), body]


def attach(kinds_and_frames: Sequence[tuple[str, bytes]]) -> tuple[tuple[AttachmentInfo, ...], tuple[bytes, ...]]:
    """The header's list and the frames for (kind, bytes) pairs."""
    infos = tuple(AttachmentInfo(kind=kind, size_bytes=len(frame)) for kind, frame in kinds_and_frames)
    return infos, tuple(frame for _, frame in kinds_and_frames)


def refusal(error: RemoteProtocolError) -> Error:
    """The `error` message that answers a refused one: with the request's id, or without when the session is over."""
    row = error_code(error.code)
    return Error(
        id=None if error.fatal else error.request_id,
        code=error.code,
        message=error.message[:4096],
        hint=error.hint or row.hint,
        retryable=row.retryable,
        retry_after=error.retry_after,
        field=None if error.field is None else error.field[:NAME_LENGTH_MAX],
        numbers=error.numbers,
    )


def failure(
    request_id: int | None,
    code: str,
    message: str = "",
    *,
    hint: str | None = None,
    retry_after: float | None = None,
    field: str | None = None,
    numbers: dict[str, Number] | None = None,
    detail: str = "",
) -> Error:
    """An `error` message from the table: meaning, hint and retryable come from the code's row when not given."""
    row = error_code(code)
    return Error(
        id=request_id,
        code=code,
        message=message or row.meaning,
        hint=row.hint if hint is None else hint,
        retryable=row.retryable,
        retry_after=retry_after,
        field=None if field is None else field[:NAME_LENGTH_MAX],
        numbers=numbers or {},
        body=detail.encode("utf-8", "replace"),
    )
