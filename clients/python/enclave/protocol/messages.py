"""The messages of the wire: frozen dataclasses, and their way to frames and back.

A message is a header frame (a MessagePack map with `type`), for some types a body frame (opaque here: a sequence of
MessagePack values for whoever answers), and attachment frames that the header lists. Session (session.py) says which
message may come when; methods.py says what is in a body.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, ClassVar, NewType, TypeAlias, cast

from enclave.protocol.codec import Bounds, decode, elsewhere, encode
from enclave.protocol.errors import LocalProtocolError, Number, RemoteProtocolError, error_code
from enclave.protocol.packing import BODY_LIMITS, HEADER_LIMITS, MIB, pack, unpack

PROTOCOL_VERSION = 1
"""The wire's own version, apart from every package's. Peers must agree on it."""

RequestId = NewType("RequestId", int)
"""Chosen by the client, growing within a session."""

ID_MAX = 2**53 - 1
"""Ids stay exact in languages whose only number is a double."""

TOKEN_BYTES = 16
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one session may send, in the welcome; more is refused with `too_large` or `busy`."""

    body_bytes: Annotated[int, Bounds(1, ID_MAX)] = BODY_LIMITS.frame_bytes
    attachment_bytes: Annotated[int, Bounds(1, ID_MAX)] = 64 * MIB
    """Of one attachment."""
    attachments: Annotated[int, Bounds(0, 1024)] = 64
    """Of one message."""
    open_requests: Annotated[int, Bounds(1, COUNT_MAX)] = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachmentInfo:
    """An attachment frame, announced in the header: what it is and how long."""

    kind: Name
    """A media type (`image/png`) or an array's type and shape (`float32[2,384]`)."""
    size_bytes: Total


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """client → daemon, first: who is there and which protocol it speaks."""

    TYPE: ClassVar[str] = "hello"
    version: Annotated[int, Bounds(0, COUNT_MAX)]
    client: Name
    """The name people see in `enclave ps` and `enclave why`."""
    program: Annotated[str, Bounds(0, REFERENCE_LENGTH_MAX)] = ""
    """Library and version, for the log."""
    features: Annotated[tuple[Name, ...], Bounds(0, 64)] = ()
    priority: Priority = Priority.NORMAL
    """Of requests that don't say their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """daemon → client: the session is open; its token goes into each later message."""

    TYPE: ClassVar[str] = "welcome"
    version: Annotated[int, Bounds(0, COUNT_MAX)]
    token: Token = dataclasses.field(repr=False)
    server: Annotated[str, Bounds(0, NAME_LENGTH_MAX)]
    """The daemon's version."""
    pid: Count
    limits: Limits = Limits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """client → daemon: a call of a method. What the daemon needs stands here, the rest in the body."""

    TYPE: ClassVar[str] = "request"
    id: Id
    token: bytes = dataclasses.field(default=b"", repr=False)
    """Session fills it in when it is left empty."""
    method: Name
    model: Reference | None = None
    priority: Priority | None = None
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
    choices: Annotated[int, Bounds(1, 128)] = 1
    credit: Annotated[int, Bounds(0, CREDIT_MAX)] = CREDIT_INITIAL
    """Chunk messages that may be sent before the client grants more."""
    backend: Name | None = None
    """Only this backend will do."""
    adapter: Reference | None = None
    draft: Reference | None = None
    projector: Reference | None = None
    prefix: Name | None = None
    attachments: Annotated[tuple[AttachmentInfo, ...], Bounds(0, 1024)] = ()
    body: bytes = elsewhere(b"")
    frames: tuple[bytes, ...] = elsewhere(())
    """The attachments, as the header announces them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """client → daemon: the answer is not wanted any more. Its result or error still comes."""

    TYPE: ClassVar[str] = "cancel"
    id: Id
    token: bytes = dataclasses.field(default=b"", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """client → daemon: so many more chunk messages may be sent for the request."""

    TYPE: ClassVar[str] = "credit"
    id: Id
    token: bytes = dataclasses.field(default=b"", repr=False)
    chunks: Annotated[int, Bounds(1, CREDIT_MAX)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ping:
    """client → daemon: are you there? Allowed before hello."""

    TYPE: ClassVar[str] = "ping"
    token: bytes | None = dataclasses.field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bye:
    """client → daemon: the session ends; what it has open is cancelled."""

    TYPE: ClassVar[str] = "bye"
    token: bytes = dataclasses.field(default=b"", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """daemon → client: why the request waits, and for how much more."""

    TYPE: ClassVar[str] = "progress"
    id: Id
    stage: Stage
    position: Count | None = None
    """In the queue, counted from 1."""
    ahead: Count | None = None
    """Requests that will be served first."""
    fraction: Annotated[float, Bounds(0, 1)] | None = None
    done: Total | None = None
    """Bytes of a load or a transfer, tokens of a prompt."""
    total: Total | None = None
    reason: Annotated[str, Bounds(0, REFERENCE_LENGTH_MAX)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """daemon → client: `count` values of the answer, one after the other in the body."""

    TYPE: ClassVar[str] = "chunk"
    id: Id
    seq: Total
    """Values of this request sent before this message, so a gap shows."""
    count: Annotated[int, Bounds(1, COUNT_MAX)] = 1
    attachments: Annotated[tuple[AttachmentInfo, ...], Bounds(0, 1024)] = ()
    body: bytes = elsewhere(b"")
    frames: tuple[bytes, ...] = elsewhere(())


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """daemon → client: the request is done. The header is its receipt, the body the method's result."""

    TYPE: ClassVar[str] = "result"
    id: Id
    model: Reference | None = None
    model_hash: Name | None = None
    backend: Name | None = None
    device: Name | None = None
    instance: Name | None = None
    queued_seconds: Seconds | None = None
    loading_seconds: Seconds | None = None
    """Zero when the model was there already."""
    prompt_seconds: Seconds | None = None
    decoding_seconds: Seconds | None = None
    preempted: Count | None = None
    """How often the request was parked for a more urgent one."""
    charged_seconds: Annotated[float, Bounds(0)] | None = None
    """Of the device, as the scheduler's fairness counts them."""
    context: Count | None = None
    """Tokens of context that the sequence had."""
    attachments: Annotated[tuple[AttachmentInfo, ...], Bounds(0, 1024)] = ()
    body: bytes = elsewhere(b"")
    frames: tuple[bytes, ...] = elsewhere(())


@dataclass(frozen=True, slots=True, kw_only=True)
class Error:
    """daemon → client: the request failed; without id: the session is over."""

    TYPE: ClassVar[str] = "error"
    id: Id | None = None
    code: Name
    message: Annotated[str, Bounds(0, 4096)] = ""
    """The daemon's own words; what came from a model or a prompt is in the body only."""
    hint: Annotated[str, Bounds(0, 4096)] = ""
    retryable: bool = False
    retry_after: Seconds | None = None
    field: Annotated[str, Bounds(0, NAME_LENGTH_MAX)] | None = None
    """Of the request, for bad_request."""
    numbers: Annotated[dict[str, Number], Bounds(0, 64)] = dataclasses.field(default_factory=dict[str, Number])
    body: bytes = elsewhere(b"")
    """UTF-8 text from outside the daemon, such as a worker's last words; often empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pong:
    """daemon → client: yes."""

    TYPE: ClassVar[str] = "pong"


ClientMessage: TypeAlias = Hello | Request | Cancel | Credit | Ping | Bye
DaemonMessage: TypeAlias = Welcome | Progress | Chunk | Result | Error | Pong
Message: TypeAlias = ClientMessage | DaemonMessage

CLIENT_MESSAGES: tuple[type[ClientMessage], ...] = (Hello, Request, Cancel, Credit, Ping, Bye)
DAEMON_MESSAGES: tuple[type[DaemonMessage], ...] = (Welcome, Progress, Chunk, Result, Error, Pong)
MESSAGE_TYPES: dict[str, type[Message]] = {kind.TYPE: kind for kind in (*CLIENT_MESSAGES, *DAEMON_MESSAGES)}

_WITH_BODY = (Request, Chunk, Result, Error)
_WITH_ATTACHMENTS = (Request, Chunk, Result)


@dataclass(frozen=True, slots=True)
class RawMessage:
    """A message whose header is read as a map, and no further: enough to know whom to answer."""

    header: dict[str, object]
    rest: tuple[bytes, ...]

    @property
    def type(self) -> str:
        value = self.header.get("type")
        return value if isinstance(value, str) else ""

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
    raw = RawMessage(cast("dict[str, object]", header), tuple(bytes(frame) for frame in frames[1:]))
    if raw.type not in MESSAGE_TYPES:
        problem = "unknown message type" if "type" in raw.header else "missing"
        raise RemoteProtocolError(f"type: {problem}", field="type")
    return raw


def parse(raw: RawMessage, limits: Limits) -> Message:
    """The typed message; raises RemoteProtocolError naming the field at fault."""
    kind = MESSAGE_TYPES[raw.type]
    message = decode(kind, raw.header)
    if not issubclass(kind, _WITH_BODY):
        if raw.rest:
            raise RemoteProtocolError(f"a {kind.TYPE} has a header frame only, got {len(raw.rest)} more")
        return message
    if not raw.rest:
        raise RemoteProtocolError(f"a {kind.TYPE} has a body frame, even if it is empty", field="body")
    body, *attachments = raw.rest
    _check_size("the body", len(body), limits.body_bytes, "body")
    announced = message.attachments if isinstance(message, _WITH_ATTACHMENTS) else ()
    _check_size("the number of attachments", len(attachments), limits.attachments, "attachments")
    if [info.size_bytes for info in announced] != [len(frame) for frame in attachments]:
        raise RemoteProtocolError("attachments: the frames are not those that the header lists", field="attachments")
    for frame in attachments:
        _check_size("an attachment", len(frame), limits.attachment_bytes, "attachments")
    if isinstance(message, _WITH_ATTACHMENTS):
        return dataclasses.replace(message, body=body, frames=tuple(attachments))
    assert isinstance(message, Error)
    return dataclasses.replace(message, body=body)


def _check_size(what: str, size: int, maximum: int, name: str) -> None:
    if size > maximum:
        raise RemoteProtocolError(
            f"{what} is {size:,}, at most {maximum:,} is allowed",
            code="too_large",
            field=name,
            numbers={"size": size, "size_max": maximum},
        )


def to_frames(message: Message, limits: Limits) -> list[bytes]:
    """The frames of a message. Raises LocalProtocolError when the other side would refuse them."""
    header = pack({"type": message.TYPE, **encode(message)})
    frames = [header]
    if isinstance(message, _WITH_BODY):
        frames.append(message.body)
    if isinstance(message, _WITH_ATTACHMENTS):
        frames.extend(message.frames)
    try:
        parse(read_raw(frames), limits)
    except RemoteProtocolError as error:
        raise LocalProtocolError(f"{message.TYPE}: {error.message}", code=error.code, field=error.field) from error
    return frames


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
        numbers=numbers or {},
        body=detail.encode("utf-8", "replace"),
    )
