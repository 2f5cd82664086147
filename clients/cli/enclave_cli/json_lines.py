"""Messages of the protocol as lines of JSON, and back: the two languages between which `enclave bridge` stands. Pure.

A line is an object: `type` and the header's fields as docs/protocol.md has them, `body` as JSON, the attachments in
`frames`. What is bytes on the wire is base64 here. On the wire a field with its default is left out; in the bodies of
answers it is filled in, as a program that reads JSON would meet `undefined`. docs/bridge.md tells the same in words.
"""

from __future__ import annotations

import base64
import json
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import cast

from enclave.protocol.codec import decode, encode, field_names
from enclave.protocol.errors import LocalProtocolError, RemoteProtocolError
from enclave.protocol.messages import (
    Bye,
    Cancel,
    Chunk,
    ClientMessage,
    Credit,
    DaemonMessage,
    Error,
    Hello,
    Ping,
    Pong,
    RawMessage,
    Request,
    RequestId,
    Result,
)
from enclave.protocol.methods import METHODS
from enclave.protocol.packing import BODY_LIMITS, MIB, iterate, pack, unpack
from enclave_cli.completing import complete

LINE_BYTES_MAX = 96 * MIB
"""Three times the largest body, for what JSON escapes, and the largest attachment (64 MiB) in base64."""

_NEWLINE = b"\n"
_SEPARATORS = "\u0085\u2028\u2029"
"""Readers of lines in several languages, Node's among them, end a line at these as well."""

_KINDS: Mapping[str, type[ClientMessage]] = {
    kind.TYPE: kind for kind in (Hello, Request, Cancel, Credit, Bye, Ping, Pong)
}
_ATTACHMENTS = "frames"
"""The attachments themselves: a field of a line that the protocol's header does not have."""
_BESIDE = frozenset(field_names(Request)) | {_ATTACHMENTS}
"""What stands beside a request's method."""
_BYTES_FIELD = "data"
"""The only field of a header that is bytes, but for the token, which no line has."""


@dataclass(frozen=True, slots=True)
class Line:
    """An object that came as a line, as far as it could be read."""

    values: dict[str, object]
    problem: str = ""
    """Why it cannot be taken although it is an object: then `values` are only good to find out whom to answer."""

    @property
    def type(self) -> str:
        """Of the message; empty when there is none."""
        return RawMessage(self.values, ()).type

    def request_id(self) -> RequestId | None:
        """The id of a `request`, if it is a possible one."""
        return RawMessage(self.values, ()).request_id() if self.type == Request.TYPE else None


class LineSplitter:
    """Bytes in pieces of any size to whole lines."""

    def __init__(self, line_bytes_max: int = LINE_BYTES_MAX) -> None:
        self.line_bytes_max = line_bytes_max
        self.number = 0
        """Of the line that was taken last, from 1; blank ones count."""
        self._lines: deque[tuple[int, bytes | None]] = deque()
        self._begun = 1
        """The number of the line that has begun."""
        self._partial = bytearray()
        self._skips = False
        """Whether the line that has begun is too long: the rest of it is dropped."""

    def __bool__(self) -> bool:
        """Whether there is a whole line."""
        return bool(self._lines)

    def feed(self, data: bytes) -> None:
        """Take in what comes next."""
        *ended, begun = data.split(_NEWLINE)
        for piece in ended:
            self._add(piece)
            self.end()
            self._begun += 1
        self._add(begun)

    def end(self) -> None:
        """Nothing more belongs to the line that has begun."""
        if self._partial:
            self._lines.append((self._begun, bytes(self._partial)))
            self._partial.clear()
        self._skips = False

    def take(self) -> bytes | None:
        """The next whole line, without its newline; None in place of one that was too long."""
        self.number, line = self._lines.popleft()
        return line

    def clear(self) -> None:
        """Forget everything that came."""
        self._lines.clear()
        self._partial.clear()

    def _add(self, piece: bytes) -> None:
        if self._skips:
            return
        self._partial += piece
        if len(self._partial) > self.line_bytes_max:
            self._partial.clear()
            self._skips = True
            self._lines.append((self._begun, None))


# --- a line as a message ---------------------------------------------------------------------------------------------


def read_line(line: bytes) -> Line:
    """The object in a line; raises RemoteProtocolError when there is none."""
    reading = _Reading()
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        reading.problem = f"the line is not UTF-8 (byte {error.start:,})"
        text = line.decode(errors="replace")
    try:
        value: object = json.loads(
            text, object_pairs_hook=reading.pairs, parse_constant=reading.constant, parse_float=reading.number
        )
    except json.JSONDecodeError as error:
        raise RemoteProtocolError(f"the line is not JSON: {error.msg} (character {error.pos:,})") from None
    except ValueError:
        raise RemoteProtocolError("the line holds a number of too many digits") from None
    except RecursionError:
        raise RemoteProtocolError("the line is nested too deeply") from None
    if not isinstance(value, dict):
        raise RemoteProtocolError("the line is no JSON object")
    return Line(cast("dict[str, object]", value), reading.problem)


class _Reading:
    """Notes what JSON's own reader lets pass."""

    def __init__(self) -> None:
        self.problem = ""

    def pairs(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        result = dict(pairs)
        if len(result) < len(pairs):
            self.problem = "an object has the same key twice"
            seen = set[str]()
            for key, _ in pairs:
                if key in seen:
                    result.pop(key, None)  # an id that is said twice is none
                seen.add(key)
        return result

    def constant(self, name: str) -> None:
        self.problem = f"{name} is no number in JSON"

    def number(self, digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            self.problem = "a number is too large"
        return value


def to_message(line: Line, defaults: Mapping[str, object] | None = None) -> ClientMessage:
    """The message that a client's line means, without token. `defaults` stand in for fields that the line leaves out.

    Raises RemoteProtocolError naming the field at fault.
    """
    if line.problem:
        raise RemoteProtocolError(line.problem)
    kind = _KINDS.get(line.type)
    if kind is None:
        problem = "missing" if line.values.get("type") is None else "no message of a client has this type"
        raise RemoteProtocolError(f"type: {problem}", field="type")
    header = {**(defaults or {}), **{name: value for name, value in line.values.items() if value is not None}}
    for name in ("token", "body", _ATTACHMENTS):
        header.pop(name, None)
    if _BYTES_FIELD in header:
        header[_BYTES_FIELD] = _from_base64(header[_BYTES_FIELD], _BYTES_FIELD)
    if kind is not Request:
        return decode(kind, header)
    body = line.values.get("body")
    if body is not None and not isinstance(body, dict):
        raise RemoteProtocolError("body: expected an object with the method's parameters", field="body")
    parameters = cast("dict[str, object] | None", body)
    _check_places(header.get("method"), header, parameters or {})
    frames = _read_frames(line.values.get(_ATTACHMENTS))
    header["attachments"] = _with_sizes(header.get("attachments"), frames)
    return decode(Request, header, beside={"body": _packed(parameters), "frames": frames})


def _check_places(method: object, beside: Mapping[str, object], body: Mapping[str, object]) -> None:
    """Raises RemoteProtocolError for a field that is known to belong to the other part of a request's line, where it
    would have no effect."""
    row = METHODS.get(method) if isinstance(method, str) else None
    if row is None:
        return
    inside = _names_of(row.params)
    for name, value in body.items():
        if value is not None and name in _BESIDE - inside:
            raise RemoteProtocolError(f"{name}: belongs beside `method`, not into `body`", field=name)
    for name, value in beside.items():
        # One that may stand in both places was perhaps said in both.
        elsewhere = name in _BESIDE and body.get(name) is not None
        if value is not None and name in inside and not elsewhere:
            raise RemoteProtocolError(f"{name}: belongs into `body`, not beside `method`", field=name)


@cache
def _names_of(kind: type[object]) -> frozenset[str]:
    return frozenset(field_names(kind))


def _packed(parameters: dict[str, object] | None) -> bytes:
    if parameters is None:
        return b""
    try:
        return pack(parameters)
    except LocalProtocolError as error:
        raise RemoteProtocolError(f"body: {error.message}", field="body") from None


def _read_frames(value: object) -> tuple[bytes, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise RemoteProtocolError("frames: expected an array of base64 texts", field="frames")
    return tuple(_from_base64(item, f"frames[{index}]") for index, item in enumerate(cast("list[object]", value)))


def _with_sizes(value: object, frames: tuple[bytes, ...]) -> object:
    """The header's attachments with the sizes of their frames, where those are left out."""
    if not isinstance(value, list):
        return () if value is None else value
    infos = cast("list[object]", value)
    if len(infos) != len(frames):
        raise RemoteProtocolError(f"attachments: {len(infos)} are listed, {len(frames)} frames came", field="frames")
    return [_with_size(info, len(frame)) for info, frame in zip(infos, frames, strict=True)]


def _with_size(info: object, size_bytes: int) -> object:
    if not isinstance(info, dict):
        return info
    said = cast("dict[str, object]", info)
    return said if said.get("size_bytes") is not None else {**said, "size_bytes": size_bytes}


def _from_base64(value: object, where: str) -> bytes:
    try:
        if isinstance(value, str):
            return base64.b64decode(value, validate=True)
    except ValueError:
        pass
    raise RemoteProtocolError(f"{where}: expected base64", field=where)


# --- a message as a line ---------------------------------------------------------------------------------------------


def to_line(message: DaemonMessage, method: str = "", *, about_line: int | None = None) -> bytes:
    """A daemon's message as a line with its newline, without token. `method` is that of its request, `about_line` the
    number of the line that an error is about.

    Raises RemoteProtocolError when its body cannot be read, or has no form in JSON.
    """
    values: dict[str, object] = {"type": message.TYPE, **encode(message)}
    values.pop("token", None)
    row = METHODS.get(method)
    if about_line is not None:
        values["line"] = about_line
    if isinstance(message, Chunk):
        body = _chunk_values(message)
        values["body"] = body if row is None or row.chunk is None else [complete(row.chunk, value) for value in body]
    elif isinstance(message, Result):
        body = unpack(message.body, BODY_LIMITS, "body") if message.body else dict[str, object]()
        values["body"] = body if row is None else complete(row.result, body)
    elif isinstance(message, Error) and message.body:
        values["body"] = message.body.decode("utf-8", "replace")
    if isinstance(message, (Chunk, Result)) and message.frames:
        values[_ATTACHMENTS] = list(message.frames)
    try:
        text = json.dumps(values, ensure_ascii=False, allow_nan=False, default=_to_base64)
    except ValueError:
        raise RemoteProtocolError("the body holds a number that is not finite", field="body") from None
    if not text.isascii():
        for separator in _SEPARATORS:
            text = text.replace(separator, f"\\u{ord(separator):04x}")
    return text.encode() + _NEWLINE


def _chunk_values(chunk: Chunk) -> list[object]:
    values = list(iterate(chunk.body, BODY_LIMITS, "body"))
    if len(values) != chunk.count:
        raise RemoteProtocolError(f"count: {chunk.count} values announced, {len(values)} sent", field="count")
    return values


def _to_base64(value: object) -> str:
    assert isinstance(value, bytes), "the protocol has no other values that JSON does not have"
    return base64.b64encode(value).decode()
