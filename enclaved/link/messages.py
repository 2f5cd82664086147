"""What the daemon and its children say to each other.

On the link a message is the array `[name, field, field, …]` in the order of the class. A child may have been taken
over by a hostile model file, so the daemon's end trusts nothing: `decode` checks every type.

Maps in the fields (`header`, `placement`, …) are the plain forms of the types that plugins see; whoever uses one
checks it again when making that type of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, TypeVar, cast

from enclaved.link.framing import LinkError, frame
from enclaved.link.packing import pack, unpack

KIND_CHARACTERS_MAX = 256
"""Of an attachment's kind."""


@dataclass(frozen=True)
class Load:
    """Daemon → worker: load a model. One descriptor a file comes along, in the order of `files`."""

    model: str
    engine: str
    files: list[list[str | int]]
    """`[role, name, size in bytes]` each."""
    header: dict[str, Any]
    placement: dict[str, Any]
    settings: dict[str, Any]
    reloaded: bool = False
    """Whether the model was loaded before, so that its cache is lost."""

    @property
    def descriptors(self) -> int:
        return len(self.files)


@dataclass(frozen=True)
class Submit:
    """Daemon → worker: answer a request. The body is the client's, unread by the daemon."""

    request: str
    method: str
    max_tokens: int | None
    choices: int
    priority: str
    body: bytes


@dataclass(frozen=True)
class Cancel:
    """Daemon → worker: stop working on a request. Unknown ids are fine."""

    request: str


@dataclass(frozen=True)
class Pause:
    """Daemon → worker: make no more tokens for a request until told to resume; its client reads too slowly."""

    request: str


@dataclass(frozen=True)
class Resume:
    """Daemon → worker: go on with a paused request."""

    request: str


@dataclass(frozen=True)
class SetThreads:
    """Daemon → worker: use so many compute threads from the next step on."""

    threads: int


@dataclass(frozen=True)
class ReadHeader:
    """Daemon → inspector: read a file's header. Its descriptor comes along."""

    job: int
    reader: str
    """`module:function` of the backend."""

    @property
    def descriptors(self) -> int:
        return 1


@dataclass(frozen=True)
class UseVocabulary:
    """Daemon → inspector: answer a request with a model's vocabulary alone. The body is the client's, unread by the
    daemon. One descriptor a file comes along, in the order of `files`."""

    job: int
    opener: str
    """`module:function` of the backend."""
    files: list[list[str | int]]
    """`[role, name, size in bytes]` each."""
    method: str
    body: bytes

    @property
    def descriptors(self) -> int:
        return len(self.files)


@dataclass(frozen=True)
class Probe:
    """Daemon → any child: try to get out of the sandbox in these ways and say what happened."""

    names: list[str]
    targets: dict[str, Any]


@dataclass(frozen=True)
class Ping:
    """Daemon → any child: say that your control channel is alive."""

    number: int


@dataclass(frozen=True)
class Hello:
    """Child → daemon: first of all, what walls stand around it."""

    link_version: int
    pid: int
    walls: dict[str, Any]


@dataclass(frozen=True)
class Warm:
    """Child → daemon: everything it was to import ahead is imported, or the reason why not."""

    problem: str | None


@dataclass(frozen=True)
class LoadProgress:
    """Worker → daemon: the part of the load that is done, 0 to 1."""

    fraction: float


@dataclass(frozen=True)
class Loaded:
    """Worker → daemon: the model is loaded."""

    memory: dict[str, Any]
    capabilities: dict[str, Any]
    seconds: float


@dataclass(frozen=True)
class LoadFailed:
    """Worker → daemon: the model cannot be loaded; the worker ends after this."""

    message: str
    out_of_memory: bool


@dataclass(frozen=True)
class Measured:
    """Worker → daemon: how long the prompt really is."""

    request: str
    prompt_tokens: int
    cached_tokens: int


@dataclass(frozen=True)
class Prompted:
    """Worker → daemon: how much of the prompt is evaluated."""

    request: str
    done: int
    total: int


@dataclass(frozen=True)
class Chunk:
    """Worker → daemon: `count` MessagePack values of an answer, one after the other in `body`."""

    request: str
    count: int
    body: bytes


@dataclass(frozen=True)
class Chunks:
    """Worker → daemon: several `Chunk`s, such as all of one step."""

    items: list[list[str | int | bytes]]
    """`[request, count, body]` each."""


@dataclass(frozen=True)
class Finished:
    """Worker → daemon: the request's result."""

    request: str
    header: dict[str, Any]
    """`prompt_seconds`, `decoding_seconds`, `charged_seconds`."""
    body: bytes
    attachments: list[list[str | bytes]] = field(default_factory=list[list["str | bytes"]])
    """`[kind, data]` each, such as vectors; kinds as in the protocol."""


@dataclass(frozen=True)
class Failed:
    """Worker → daemon: the request ends with an error. `body` holds whatever came from a prompt or a model."""

    request: str
    code: str
    message: str
    numbers: dict[str, Any]
    body: bytes
    field: str | None = None
    """Of the request, when that is what is wrong."""


@dataclass(frozen=True)
class HeaderRead:
    """Inspector → daemon: a header, in its plain form."""

    job: int
    header: dict[str, Any]


@dataclass(frozen=True)
class HeaderRefused:
    """Inspector → daemon: the file is no model; the message says why."""

    job: int
    message: str
    kind: str
    """`no_model`, `cut_off`, or `trouble`: then reading failed, which says nothing about the file."""


@dataclass(frozen=True)
class VocabularyUsed:
    """Inspector → daemon: the body of a request's result."""

    job: int
    body: bytes


@dataclass(frozen=True)
class VocabularyRefused:
    """Inspector → daemon: why there is no answer."""

    job: int
    code: str
    message: str
    field: str | None
    """Of the request, when that is what is wrong."""


@dataclass(frozen=True)
class Probed:
    """Child → daemon: what each attempt to get out came to."""

    outcomes: list[dict[str, Any]]


@dataclass(frozen=True)
class Pong:
    """Child → daemon: the answer to `Ping`."""

    number: int


ToChild = Load | Submit | Cancel | Pause | Resume | SetThreads | ReadHeader | UseVocabulary | Probe | Ping
FromChild = (
    Hello
    | Warm
    | LoadProgress
    | Loaded
    | LoadFailed
    | Measured
    | Prompted
    | Chunk
    | Chunks
    | Finished
    | Failed
    | HeaderRead
    | HeaderRefused
    | VocabularyUsed
    | VocabularyRefused
    | Probed
    | Pong
)
Message = ToChild | FromChild

_TO_CHILD: dict[str, type[ToChild]] = {
    cls.__name__: cls
    for cls in (Load, Submit, Cancel, Pause, Resume, SetThreads, ReadHeader, UseVocabulary, Probe, Ping)
}
_FROM_CHILD: dict[str, type[FromChild]] = {
    cls.__name__: cls
    for cls in (
        Hello,
        Warm,
        LoadProgress,
        Loaded,
        LoadFailed,
        Measured,
        Prompted,
        Chunk,
        Chunks,
        Finished,
        Failed,
        HeaderRead,
        HeaderRefused,
        VocabularyUsed,
        VocabularyRefused,
        Probed,
        Pong,
    )
}


def descriptors_of(message: Message) -> int:
    """How many file descriptors travel with a message."""
    return message.descriptors if isinstance(message, (Load, ReadHeader, UseVocabulary)) else 0


def encode(message: Message) -> bytes:
    """The message as one frame. Raises LinkError when it is too large."""
    values: list[Any] = [type(message).__name__]
    values += [getattr(message, slot.name) for slot in fields(message)]
    return frame(pack(values))


def joined(messages: Sequence[FromChild]) -> list[FromChild]:
    """The same with each row of chunks as one message: reading one costs little more than reading a chunk."""
    result: list[FromChild] = []
    row: list[Chunk] = []
    for message in messages:
        if isinstance(message, Chunk):
            row.append(message)
            continue
        if row:
            result.append(_row(row))
            row = []
        result.append(message)
    if row:
        result.append(_row(row))
    return result


def _row(chunks: list[Chunk]) -> Chunk | Chunks:
    return chunks[0] if len(chunks) == 1 else Chunks([[each.request, each.count, each.body] for each in chunks])


def decode_from_child(payload: bytes) -> FromChild:
    """The message in a child's payload. Raises LinkError for anything that is not one."""
    return _decode(payload, _FROM_CHILD)


def decode_to_child(payload: bytes) -> ToChild:
    """The message in the daemon's payload. Raises LinkError for anything that is not one."""
    return _decode(payload, _TO_CHILD)


_M = TypeVar("_M", bound=Message)


def _decode(payload: bytes, known: dict[str, type[_M]]) -> _M:
    values = unpack(payload)
    if not isinstance(values, list) or not values:
        raise LinkError("not a message: no array")
    name, *rest = cast("list[Any]", values)
    kind = known.get(name) if isinstance(name, str) else None
    if kind is None:
        raise LinkError("an unknown message")
    slots = _slots(kind)
    if len(rest) != len(slots):
        raise LinkError(f"{name} has {len(rest)} fields, not {len(slots)}")
    for (slot, annotation, check), value in zip(slots, rest, strict=True):
        if not check(value):
            raise LinkError(f"{name}.{slot} is a {type(value).__name__}, not {annotation}")
    return kind(*rest)


@cache
def _slots(kind: type[Message]) -> tuple[tuple[str, str, Callable[[object], bool]], ...]:
    """Name, annotation and check of each field."""
    return tuple((slot.name, cast("str", slot.type), _CHECKS[cast("str", slot.type)]) for slot in fields(kind))


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_map(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in cast("dict[Any, Any]", value))


def _is_list_of(check: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and all(check(item) for item in cast("list[Any]", value))


_CHECKS: dict[str, Callable[[object], bool]] = {
    "str": lambda value: isinstance(value, str),
    "str | None": lambda value: value is None or isinstance(value, str),
    "int": _is_integer,
    "int | None": lambda value: value is None or _is_integer(value),
    "float": lambda value: isinstance(value, float) or _is_integer(value),
    "bool": lambda value: isinstance(value, bool),
    "bytes": lambda value: isinstance(value, bytes),
    "dict[str, Any]": _is_map,
    "list[list[str | bytes]]": _is_list_of(
        lambda item: (
            isinstance(item, list)
            and [type(part) for part in cast("list[Any]", item)] == [str, bytes]
            and 1 <= len(cast("list[Any]", item)[0]) <= KIND_CHARACTERS_MAX
        )
    ),
    "list[str]": _is_list_of(lambda item: isinstance(item, str)),
    "list[dict[str, Any]]": _is_list_of(_is_map),
    "list[list[str | int | bytes]]": _is_list_of(
        lambda item: isinstance(item, list) and [type(part) for part in cast("list[Any]", item)] == [str, int, bytes]
    ),
    "list[list[str | int]]": _is_list_of(_is_list_of(lambda item: isinstance(item, str) or _is_integer(item))),
}
"""One check for each annotation used above; a test demands that none is missing."""
