"""MessagePack within limits: bytes of unknown origin to plain values and back.

The message and method codecs call it. It knows nothing of messages or types beyond MessagePack's own.
Whatever the bytes are, reading gives the value or raises RemoteProtocolError.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any, cast

import msgpack  # pyright: ignore[reportMissingTypeStubs]

from enclave.protocol.errors import LocalProtocolError, RemoteProtocolError

_msgpack: Any = msgpack  # it ships no types


@dataclass(frozen=True, slots=True)
class PackLimits:
    """Bounds on one frame of MessagePack, checked before or while it is read."""

    frame_bytes: int
    text_bytes: int
    """Of one string, in UTF-8."""
    binary_bytes: int
    array_items: int
    map_items: int
    depth: int
    """Containers within containers; a flat map has depth 1."""
    flat_bytes: int = field(init=False)
    """A map this short, of scalars and lists of them, is within all the others."""

    def __post_init__(self) -> None:
        others = (self.frame_bytes, self.text_bytes, self.binary_bytes, self.array_items)
        fits = self.depth >= _FLAT_DEPTH and self.map_items >= _SMALL_MAP_PAIRS
        object.__setattr__(self, "flat_bytes", min(*others, FLAT_BYTES_MAX) if fits else 0)


FLAT_BYTES_MAX = 256
_FLAT_DEPTH = 2
_SMALL_MAP = 0x80
_SMALL_MAP_PAIRS = 0x0F
"""MessagePack's fixmap: the low four bits of its first byte are the number of pairs."""


HEADER_LIMITS = PackLimits(
    frame_bytes=16 * 1024, text_bytes=8 * 1024, binary_bytes=1024, array_items=1024, map_items=256, depth=8
)
"""A header is fields and figures; the longest honest text in it is a path (4,096 bytes on Linux)."""

MIB = 1024 * 1024
BODY_LIMITS = PackLimits(
    frame_bytes=32 * MIB, text_bytes=32 * MIB, binary_bytes=32 * MIB, array_items=4 * MIB, map_items=65_536, depth=64
)
"""A body holds a prompt: 4 Mi tokens as numbers or 32 MiB of text is beyond any model's context today; 64 levels
are for JSON schemas of tools."""

_PLAIN = (type(None), bool, int, float, str, bytes)
_PLAIN_TYPES = frozenset(_PLAIN)
_TEXT = frozenset({str})


def pack(value: object) -> bytes:
    """One value as MessagePack; raises LocalProtocolError for what has no plain form there."""
    try:
        return _msgpack.packb(value, use_bin_type=True, strict_types=True)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise LocalProtocolError(f"cannot be written as MessagePack: {error}") from error


def unpack(frame: bytes | memoryview, limits: PackLimits, what: str = "frame") -> object:
    """The one value in the frame; raises RemoteProtocolError when there is none, more than one, or one too large."""
    if (flat := _unpack_flat(frame, limits)) is not None:
        return flat
    _check_length(frame, limits, what)
    if not frame:
        raise RemoteProtocolError(f"the {what} is empty")
    try:
        value: object = _msgpack.unpackb(frame, **_options(limits))
    except RemoteProtocolError:
        raise
    except _msgpack.ExtraData:
        raise RemoteProtocolError(f"the {what} holds more than one value") from None
    except _FAILURES as error:
        raise _unreadable(error, what) from error
    _check_plain(value, limits.depth, what)
    return value


def _unpack_flat(frame: bytes | memoryview, limits: PackLimits) -> dict[str, object] | None:
    """What `unpack` gives for a short flat map, as most frames are, at half the price; None: it has to look closer."""
    if not 0 < len(frame) <= limits.flat_bytes or frame[0] & ~_SMALL_MAP_PAIRS != _SMALL_MAP:
        return None
    try:
        value: dict[str, object] = _msgpack.unpackb(frame)
    except _FAILURES:
        return None
    # A key that came twice is there once.
    if len(value) != frame[0] & _SMALL_MAP_PAIRS or not _TEXT.issuperset(map(type, value)):
        return None
    for item in value.values():
        if type(item) not in _PLAIN_TYPES:
            if type(item) is not list:
                return None
            if not _PLAIN_TYPES.issuperset(map(type, cast("list[object]", item))):
                return None
    return value


def iterate(frame: bytes | memoryview, limits: PackLimits, what: str = "frame") -> Iterator[object]:
    """The values in the frame, one after the other; raises RemoteProtocolError at the first that cannot be read."""
    _check_length(frame, limits, what)
    size = len(frame)
    # Its buffer is a megabyte unless told otherwise, and made anew for each frame.
    unpacker = _msgpack.Unpacker(read_size=max(1, size), max_buffer_size=max(1, size), **_options(limits))
    unpacker.feed(frame)
    while unpacker.tell() < size:
        try:
            value: object = unpacker.unpack()
        except RemoteProtocolError:
            raise
        except _msgpack.OutOfData:
            raise RemoteProtocolError(f"the {what} is cut off") from None
        except _FAILURES as error:
            raise _unreadable(error, what) from error
        _check_plain(value, limits.depth, what)
        yield value


_FAILURES = (_msgpack.UnpackException, ValueError, TypeError, OverflowError, RecursionError)


def _unreadable(error: Exception, what: str) -> RemoteProtocolError:
    if isinstance(error, ValueError) and "incomplete input" in str(error):
        return RemoteProtocolError(f"the {what} is cut off")
    return RemoteProtocolError(f"the {what} is not valid MessagePack ({type(error).__name__})")


def _check_length(frame: bytes | memoryview, limits: PackLimits, what: str) -> None:
    if len(frame) > limits.frame_bytes:
        raise RemoteProtocolError(
            f"the {what} has {len(frame):,} bytes, at most {limits.frame_bytes:,} are allowed",
            code="too_large",
            numbers={"bytes": len(frame), "bytes_max": limits.frame_bytes},
        )


@cache
def _options(limits: PackLimits) -> dict[str, Any]:
    return {
        "use_list": True,
        "raw": False,
        "strict_map_key": True,
        "object_pairs_hook": _pairs,
        "ext_hook": _refuse_extension,
        "max_str_len": limits.text_bytes,
        "max_bin_len": limits.binary_bytes,
        "max_array_len": limits.array_items,
        "max_map_len": limits.map_items,
        "max_ext_len": 0,
    }


def _pairs(pairs: list[tuple[object, object]]) -> dict[str, object]:
    # MessagePack lets the last of two equal keys win in silence: two readers could then see two messages in one.
    result = dict(pairs)
    if len(result) != len(pairs):
        raise RemoteProtocolError("a map has the same key twice")
    for key in result:
        if type(key) is not str:
            raise RemoteProtocolError("a map has a key that is not a string")
    return cast("dict[str, object]", result)


def _refuse_extension(code: int, data: bytes) -> object:
    raise RemoteProtocolError("MessagePack extension types are not used in this protocol")


def _check_plain(value: object, depth_max: int, what: str) -> None:
    # Iterative, so that deep nesting cannot reach the interpreter's own recursion limit. It also catches the
    # timestamp extension, which msgpack reads without asking ext_hook.
    waiting: list[tuple[object, int]] = [(value, 0)]
    while waiting:
        item, depth = waiting.pop()
        if isinstance(item, (list, dict)):
            if depth >= depth_max:
                raise RemoteProtocolError(f"the {what} is nested more than {depth_max} deep")
            children = (
                cast("dict[str, object]", item).values() if isinstance(item, dict) else cast("list[object]", item)
            )
            waiting.extend((child, depth + 1) for child in children if not isinstance(child, _PLAIN))
        elif not isinstance(item, _PLAIN):
            raise RemoteProtocolError("MessagePack extension types are not used in this protocol")
