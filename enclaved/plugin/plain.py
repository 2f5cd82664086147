"""The types that plugins see, as plain maps and back: how they cross the link between the processes.

What comes from a child is checked type by type: a hostile file may have taken the child over.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")


def to_plain(value: object) -> dict[str, Any]:
    """A dataclass as a map of its fields, nested ones too."""
    if not is_dataclass(value):
        raise TypeError(f"{type(value).__name__} is no dataclass")
    return {slot.name: _plain(getattr(value, slot.name)) for slot in fields(value)}


def from_plain(kind: type[T], values: Mapping[str, Any]) -> T:
    """The dataclass again. Unknown fields are ignored. Raises ValueError naming the first field that is wrong."""
    hints = _hints(kind)
    arguments: dict[str, Any] = {}
    for slot in fields(cast("Any", kind)):
        if slot.name in values:
            arguments[slot.name] = _typed(hints[slot.name], values[slot.name], slot.name)
        elif slot.default is MISSING and slot.default_factory is MISSING:
            raise ValueError(f"{slot.name} is missing")
    return kind(**arguments)


@cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    return get_type_hints(kind)


def _plain(value: object) -> Any:
    if is_dataclass(value):
        return to_plain(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in cast("list[Any]", value)]
    return value


def _typed(hint: Any, value: Any, where: str) -> Any:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        for option in get_args(hint):
            try:
                return _typed(option, value, where)
            except ValueError:
                continue
    elif origin is Literal:
        if value in get_args(hint):
            return value
    elif origin is tuple:
        if isinstance(value, (list, tuple)):
            inner = get_args(hint)[0]
            return tuple(_typed(inner, item, where) for item in cast("list[Any]", value))
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        if isinstance(value, Mapping):
            key_hint, item_hint = get_args(hint)
            items = cast("Mapping[Any, Any]", value).items()
            return {_typed(key_hint, key, where): _typed(item_hint, item, where) for key, item in items}
    elif is_dataclass(hint):
        if isinstance(value, Mapping):
            return from_plain(cast("type[Any]", hint), cast("Mapping[str, Any]", value))
    elif hint is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    elif isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    elif (supertype := cast("Any", getattr(hint, "__supertype__", None))) is not None:
        return _typed(supertype, value, where)
    elif hint is type(None) and value is None:
        return None
    raise ValueError(f"{where} is {value!r:.60}")
