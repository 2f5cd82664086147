"""Frozen dataclasses that cost nothing until they are used.

The protocol declares over sixty types, and every program, every child and every command imports them to use a dozen.
`dataclasses.dataclass` compiles six functions for each, which would be most of what importing the client takes. A
record shares its methods with all others, and its fields are looked at when the first of its kind is made. To
`dataclasses.fields`, `replace` and `asdict`, and to a type checker, it is a dataclass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, FrozenInstanceError, dataclass, field, fields
from threading import RLock
from typing import Any, TypeVar, dataclass_transform

T = TypeVar("T")

_one_at_a_time = RLock()
_FIELDS = "__dataclass_fields__"
_PLAN = "__record_plan__"


class _Unseen:
    """Stands in for a record's fields until somebody looks: then it is made a dataclass."""

    def __get__(self, instance: object, kind: type[Any]) -> Any:
        with _one_at_a_time:
            if kind.__dict__[_FIELDS] is self:
                dataclass(init=False, repr=False, eq=False, match_args=False)(kind)
            return kind.__dict__[_FIELDS]


class _Plan:
    """What the shared methods need to know of a class."""

    __slots__ = ("defaults", "factories", "names", "order", "shown")

    def __init__(self, kind: type[Any]) -> None:
        slots = fields(kind)
        self.order = [slot.name for slot in slots]
        self.names = frozenset(self.order)
        self.defaults: dict[str, Any] = {slot.name: slot.default for slot in slots if slot.default is not MISSING}
        self.factories: list[tuple[str, Callable[[], Any]]] = [
            (slot.name, slot.default_factory) for slot in slots if slot.default_factory is not MISSING
        ]
        self.shown = [slot.name for slot in slots if slot.repr]


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def record(kind: type[T]) -> type[T]:
    """Make a class one with frozen fields, given by name."""
    setattr(kind, _FIELDS, _Unseen())
    setattr(kind, _PLAN, None)
    for method in (_init, _repr, _eq, _hash, _setattr, _delattr):
        setattr(kind, f"_{method.__name__}__", method)
    return kind


def _plan(kind: Any) -> _Plan:
    plan: _Plan | None = kind.__record_plan__
    if plan is None:
        plan = _Plan(kind)
        setattr(kind, _PLAN, plan)
    return plan


def _init(self: Any, **values: Any) -> None:
    plan = _plan(type(self))
    own: dict[str, Any] = self.__dict__
    own.update(plan.defaults)
    own.update(values)
    for name, make in plan.factories:
        if name not in values:
            own[name] = make()
    if own.keys() != plan.names:
        name = type(self).__name__
        if unknown := own.keys() - plan.names:
            raise TypeError(f"{name}() got an unexpected keyword argument {min(unknown)!r}")
        raise TypeError(f"{name}() lacks the keyword argument {min(plan.names - own.keys())!r}")


def _repr(self: Any) -> str:
    shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in _plan(type(self)).shown)
    return f"{type(self).__qualname__}({shown})"


def _eq(self: Any, other: object) -> bool:
    if type(other) is not type(self):
        return NotImplemented
    return bool(self.__dict__ == other.__dict__)


def _hash(self: object) -> int:
    return hash(tuple(getattr(self, name) for name in _plan(type(self)).order))


def _setattr(self: object, name: str, value: object) -> None:
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _delattr(self: object, name: str) -> None:
    raise FrozenInstanceError(f"cannot delete field {name!r}")
