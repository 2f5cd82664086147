"""The fields that the wire leaves out of a body since they have their defaults, filled in for who reads JSON. Pure.

`enclave bridge` prints bodies with them, so that a program never meets `undefined` where the protocol declares a field.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Union, cast, get_args, get_origin


def complete(kind: type[object], value: object) -> object:
    """A value of a body with every declared field of the dataclass `kind`, also in what lies in it."""
    if not isinstance(value, dict):
        return value
    defaults, nested = _declared(kind)
    result = dict(cast("dict[str, object]", value))
    for name, default in defaults.items():
        result.setdefault(name, default)
    for name, inner in nested:
        item = result.get(name)
        if isinstance(item, list):
            result[name] = [complete(inner, each) for each in cast("list[object]", item)]
        elif item is not None:
            result[name] = complete(inner, item)
    return result


@cache
def _declared(kind: type[object]) -> tuple[Mapping[str, object], tuple[tuple[str, type[object]], ...]]:
    """The defaults of a dataclass as JSON, and the fields that hold dataclasses themselves, alone or in arrays."""
    defaults: dict[str, object] = {}
    nested: list[tuple[str, type[object]]] = []
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(cast(Any, kind)):
        if field.default is not dataclasses.MISSING:
            defaults[field.name] = _as_json(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            defaults[field.name] = _as_json(field.default_factory())
        nested += [(field.name, inner) for inner in _dataclasses_in(hints[field.name])]
    return defaults, tuple(nested)


def _dataclasses_in(hint: object) -> list[type[object]]:
    if get_origin(hint) in (Union, types.UnionType, tuple):
        return [found for argument in get_args(hint) for found in _dataclasses_in(argument)]
    return [hint] if isinstance(hint, type) and dataclasses.is_dataclass(hint) else []


def _as_json(value: object) -> object:
    """A default of the protocol's types."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _as_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (tuple, list)):
        return [_as_json(item) for item in cast("Sequence[object]", value)]
    return value
