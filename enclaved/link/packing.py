"""MessagePack for the link, typed: the library itself has no types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import msgpack  # pyright: ignore[reportMissingTypeStubs]

from enclaved.link.framing import LinkError

DEPTH_MAX = 32
"""Containers within containers. A header is 4 deep; from about 900 on even printing a value fails."""

_packb = cast("Callable[..., bytes]", msgpack.packb)  # pyright: ignore[reportUnknownMemberType]
_unpackb = cast("Callable[..., Any]", msgpack.unpackb)  # pyright: ignore[reportUnknownMemberType]
_FAILURES = (ValueError, TypeError, OverflowError, RecursionError, msgpack.exceptions.UnpackException)
_SCALARS = (type(None), bool, int, float, str, bytes)


def pack(value: object) -> bytes:
    """One value as MessagePack. Raises LinkError for what has no plain form there."""
    try:
        return _packb(value, use_bin_type=True)
    except _FAILURES as error:
        raise LinkError(f"cannot be written as MessagePack: {error}") from error


def unpack(payload: bytes) -> Any:
    """The one value in `payload`. Raises LinkError for whatever is not exactly one plain value."""
    try:
        value = _unpackb(payload, raw=False, strict_map_key=True, ext_hook=_refuse_extension)
    except _FAILURES as error:
        raise LinkError(f"not a message ({type(error).__name__})") from error
    _check_plain(value)
    return value


def _refuse_extension(code: int, _data: bytes) -> object:
    raise ValueError(f"extension type {code}")


def _check_plain(value: object) -> None:
    """Iterative, so that deep nesting cannot reach the interpreter's own limit. The library reads one extension type,
    the timestamp, without asking."""
    if type(value) is list and all(isinstance(item, _SCALARS) for item in cast("list[object]", value)):
        return  # most messages are this flat
    waiting: list[tuple[object, int]] = [(value, 0)]
    while waiting:
        item, depth = waiting.pop()
        if isinstance(item, _SCALARS):
            continue
        if depth >= DEPTH_MAX:
            raise LinkError(f"not a message: nested more than {DEPTH_MAX} deep")
        if isinstance(item, dict):
            entries = cast("dict[object, object]", item)
            if not all(isinstance(key, str) for key in entries):
                raise LinkError("not a message: a map has a key that is no text")
            inside = list(entries.values())
        elif isinstance(item, list):
            inside = cast("list[object]", item)
        else:
            raise LinkError(f"not a message: a {type(item).__name__} is no plain value")
        waiting += [(child, depth + 1) for child in inside if not isinstance(child, _SCALARS)]
