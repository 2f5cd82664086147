"""Frozen dataclasses to plain maps and back, checked by their type hints.

Messages and method parameters are declared once as dataclasses; this module turns maps of unknown origin into them
and names the field that does not fit. Unknown fields are ignored, so that newer peers can be understood. It reads
no bytes (packing.py does) and knows no message.

Rules: a bool is not an int; an int is taken for a float; floats are finite; None stands for a missing optional
field; Bounds hold a number's value or the length of a text, bytes, array or map.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin

from enclave.protocol.errors import LocalProtocolError, RemoteProtocolError

T = TypeVar("T")

Reader = Callable[[object, str], Any]
"""Takes a plain value and the path of its field; gives the typed value or raises RemoteProtocolError."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Inclusive limits of a number's value or of the length of a text, bytes, array or map; for `Annotated`."""

    minimum: float | None = None
    maximum: float | None = None


ELSEWHERE = "elsewhere"
"""Metadata key of a field that does not travel in the map (a body or attachment frame)."""


def elsewhere(default: Any) -> Any:
    """A dataclass field that travels in a frame of its own: encode and decode leave it alone."""
    return dataclasses.field(default=default, metadata={ELSEWHERE: True}, repr=False)


def decode(kind: type[T], values: object, where: str = "", beside: Mapping[str, object] | None = None) -> T:
    """An object of the dataclass `kind` from a plain map, and its fields of other frames from `beside`.

    Raises RemoteProtocolError naming the field at fault.
    """
    arguments = _arguments_reader(kind)(values, where)
    return kind(**arguments) if beside is None else kind(**arguments, **beside)


def check(kind: type[object], values: object) -> None:
    """Raises RemoteProtocolError for what `decode` would refuse."""
    _arguments_reader(kind)(values, "")


def encode(value: object) -> dict[str, object]:
    """A dataclass as a plain map, without the fields that are None or have their default."""
    result: dict[str, object] = {}
    for name, default, make_default in _outgoing(type(value)):
        item: object = getattr(value, name)
        if item is None or item is default:
            continue
        if type(item) is type(default) and item == default:
            continue
        if make_default is not None and item == make_default():
            continue
        result[name] = item if type(item) in _AS_THEY_ARE else _plain(item, name)
    return result


_AS_THEY_ARE = frozenset({bool, int, float, str, bytes})


def field_names(kind: type[object]) -> tuple[str, ...]:
    """The names that travel in the map of this dataclass, in order."""
    return tuple(field.name for field in _travelling(kind))


@cache
def _travelling(kind: type[object]) -> tuple[dataclasses.Field[Any], ...]:
    return tuple(field for field in dataclasses.fields(cast(Any, kind)) if not field.metadata.get(ELSEWHERE))


@cache
def _outgoing(kind: type[object]) -> tuple[tuple[str, object, Callable[[], object] | None], ...]:
    """Name, default and maker of the default of each field that travels."""
    return tuple(
        (
            field.name,
            field.default,
            None
            if field.default_factory is dataclasses.MISSING
            else cast("Callable[[], object]", field.default_factory),
        )
        for field in _travelling(kind)
    )


def _plain(item: object, where: str) -> object:
    if isinstance(item, Enum):
        return item.value
    if item is None or isinstance(item, (bool, int, float, str, bytes)):
        return item
    if dataclasses.is_dataclass(item):
        return encode(item)
    if isinstance(item, Mapping):
        pairs = cast("Mapping[object, object]", item).items()
        return {_plain_key(key, where): _plain(value, where) for key, value in pairs}
    if isinstance(item, (list, tuple)):
        return [_plain(value, where) for value in cast("list[object]", item)]
    raise LocalProtocolError(f"{where}: {type(item).__name__} cannot be sent")


def _plain_key(key: object, where: str) -> str:
    if not isinstance(key, str):
        raise LocalProtocolError(f"{where}: a map's keys are strings, not {type(key).__name__}")
    return key


def _wrong(where: str, expected: str, value: object) -> RemoteProtocolError:
    # The value itself stays out of the message: it may be long, and it may be a prompt.
    name = where or "the value"
    return RemoteProtocolError(f"{name}: expected {expected}, got {_type_name(value)}", field=where or None)


def _type_name(value: object) -> str:
    names: dict[type, str] = {
        type(None): "nothing",
        dict: "a map",
        list: "an array",
        str: "text",
        bytes: "bytes",
        bool: "a boolean",
    }
    return names.get(type(value), type(value).__name__)


@cache
def _reader(hint: Any) -> Reader:
    """The reader of a type hint, made once. Raises TypeError for a hint that has no plain form: our own bug."""
    origin = get_origin(hint)
    arguments = get_args(hint)
    if origin is Annotated:
        bounds = tuple(a for a in arguments[1:] if isinstance(a, Bounds))
        return _bounded_reader(_reader(arguments[0]), bounds, arguments[0])
    if origin in (Union, types.UnionType):
        return _union_reader(arguments)
    if origin is Literal:
        return _literal_reader(arguments)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return _array_reader(_reader(arguments[0]), tuple)
    if origin is list:
        return _array_reader(_reader(arguments[0]), list)
    if origin in (dict, Mapping) and arguments[0] is str:
        return _map_reader(_reader(arguments[1]))
    if hint in (Any, object):
        return _read_anything
    if hint in _SCALARS:
        return _SCALARS[hint]
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _enum_reader(hint)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _dataclass_reader(hint)
    supertype = getattr(cast(object, hint), "__supertype__", None)  # a NewType
    if supertype is not None:
        return _reader(supertype)
    raise TypeError(f"no wire form for {hint!r}")


def _read_anything(value: object, where: str) -> object:
    if type(value) in _AS_THEY_ARE and type(value) is not float:
        return value
    waiting: list[object] = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, float):
            _read_float(item, where)
        elif isinstance(item, dict):
            waiting.extend(cast("dict[str, object]", item).values())
        elif isinstance(item, list):
            waiting.extend(cast("list[object]", item))
    return value


def _read_none(value: object, where: str) -> None:
    if value is not None:
        raise _wrong(where, "nothing", value)


def _read_bool(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong(where, "a boolean", value)
    return value


def _read_int(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(where, "an integer", value)
    return value


def _read_float(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _wrong(where, "a number", value)
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    if not math.isfinite(result):
        raise RemoteProtocolError(f"{where or 'the value'}: expected a finite number", field=where or None)
    return result


def _read_str(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise _wrong(where, "text", value)
    return value


def _read_bytes(value: object, where: str) -> bytes:
    if not isinstance(value, bytes):
        raise _wrong(where, "bytes", value)
    return value


_SCALARS: dict[Any, Reader] = {
    type(None): _read_none,
    None: _read_none,
    bool: _read_bool,
    int: _read_int,
    float: _read_float,
    str: _read_str,
    bytes: _read_bytes,
}


def _bounded_reader(inner: Reader, bounds: tuple[Bounds, ...], kind: Any) -> Reader:
    def read(value: object, where: str) -> Any:
        result = inner(value, where)
        if result is None:
            return result
        is_number = isinstance(result, (int, float))
        size = cast(float, result) if is_number else len(cast("list[object]", result))
        for bound in bounds:
            low = bound.minimum is not None and size < bound.minimum
            high = bound.maximum is not None and size > bound.maximum
            if low or high:
                subject = "" if is_number else "a length of "
                raise RemoteProtocolError(f"{where}: expected {subject}{_range(bound)}, got {size:,}", field=where)
        return result

    lowest = max((-math.inf if bound.minimum is None else bound.minimum for bound in bounds), default=-math.inf)
    highest = min((math.inf if bound.maximum is None else bound.maximum for bound in bounds), default=math.inf)

    def read_integer(value: object, where: str) -> Any:
        return value if type(value) is int and lowest <= value <= highest else read(value, where)

    def read_sized(value: object, where: str) -> Any:
        # What is right takes the short way; `read` says what is wrong.
        good = type(value) is kind and lowest <= len(cast("str | bytes", value)) <= highest
        return value if good else read(value, where)

    return read_integer if kind is int else read_sized if kind in (str, bytes) else read


def _range(bound: Bounds) -> str:
    if bound.minimum is None:
        return f"at most {bound.maximum:,}"
    if bound.maximum is None:
        return f"at least {bound.minimum:,}"
    return f"{bound.minimum:,} to {bound.maximum:,}"


def _union_reader(members: tuple[Any, ...]) -> Reader:
    readers = tuple(_reader(member) for member in members if member is not type(None))
    optional = len(readers) != len(members)

    def read(value: object, where: str) -> Any:
        if value is None and optional:
            return None
        failure: RemoteProtocolError | None = None
        for reader in readers:
            try:
                return reader(value, where)
            except RemoteProtocolError as error:
                # The member whose failure lies deepest came nearest: its words help most.
                if failure is None or len(error.field or "") > len(failure.field or ""):
                    failure = error
        raise failure or _wrong(where, "nothing", value)

    return read


def _literal_reader(choices: tuple[Any, ...]) -> Reader:
    expected = "one of " + ", ".join(str(choice) for choice in choices)

    def read(value: object, where: str) -> Any:
        for choice in choices:
            if type(value) is type(choice) and value == choice:
                return choice
        raise _wrong(where, expected, value)

    return read


def _enum_reader(kind: type[Enum]) -> Reader:
    by_value = {member.value: member for member in kind}
    expected = "one of " + ", ".join(str(value) for value in by_value)

    def read(value: object, where: str) -> Any:
        member = by_value.get(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else None
        if member is None:
            raise _wrong(where, expected, value)
        return member

    return read


def _array_reader(inner: Reader, make: Callable[[Sequence[Any]], Any]) -> Reader:
    scalar = next((kind for kind, reader in _SCALARS.items() if reader is inner and kind in (int, str)), None)
    all_right = frozenset({scalar})

    def read(value: object, where: str) -> Any:
        if not isinstance(value, (list, tuple)):
            raise _wrong(where, "an array", value)
        items = cast("list[object]", value)
        if all_right.issuperset(map(type, items)):
            return make(items)
        try:
            return make([inner(item, where) for item in items])
        except RemoteProtocolError:
            # Naming each item's place costs more than reading it (a prompt may be a million tokens): only now.
            for index, item in enumerate(items):
                inner(item, f"{where}[{index}]")
            raise

    return read


def _map_reader(inner: Reader) -> Reader:
    def read(value: object, where: str) -> Any:
        if not isinstance(value, dict):
            raise _wrong(where, "a map", value)
        result: dict[str, Any] = {}
        for key, item in cast("dict[object, object]", value).items():
            result[_read_str(key, where)] = inner(item, f"{where}.{key}")
        return result

    return read


def _dataclass_reader(kind: type[object]) -> Reader:
    read = _arguments_reader(kind)
    return lambda value, where: kind(**read(value, where))


@cache
def _arguments_reader(kind: type[object]) -> Callable[[object, str], dict[str, Any]]:
    def table() -> tuple[dict[object, Reader], tuple[str, ...], tuple[str, ...]]:
        """The reader of each field, the fields that must be there, and those that are None when they are not."""
        hints = typing.get_type_hints(kind, include_extras=True)
        fields = _travelling(kind)
        bare = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
        return (
            {field.name: _reader(_without_none(hints[field.name])) for field in fields},
            tuple(name for name in bare if not _accepts_none(hints[name])),
            tuple(name for name in bare if _accepts_none(hints[name])),
        )

    # Hints are looked up at the first value, not now: a dataclass may refer to itself.
    known: tuple[dict[object, Reader], tuple[str, ...], tuple[str, ...]] | None = None

    def read(value: object, where: str) -> dict[str, Any]:
        nonlocal known
        if not isinstance(value, dict):
            raise _wrong(where, "a map", value)
        if known is None:
            known = table()
        readers, needed, nullable = known
        arguments: dict[str, Any] = {}
        for name, item in cast("dict[str, object]", value).items():
            reader = readers.get(name)
            if reader is not None and item is not None:
                arguments[name] = reader(item, f"{where}.{name}" if where else name)
        for name in needed:
            if name not in arguments:
                path = f"{where}.{name}" if where else name
                raise RemoteProtocolError(f"{path}: missing", field=path)
        for name in nullable:
            arguments.setdefault(name)
        return arguments

    return read


def _without_none(hint: Any) -> Any:
    """What an optional field is when it is there: None never reaches its reader."""
    members = [member for member in get_args(hint) if member is not type(None)]
    return members[0] if get_origin(hint) in (Union, types.UnionType) and len(members) == 1 else hint


def _accepts_none(hint: Any) -> bool:
    if get_origin(hint) is Annotated:
        return _accepts_none(get_args(hint)[0])
    return hint in (Any, object, None, type(None)) or type(None) in get_args(hint)
