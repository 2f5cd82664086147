"""A bounded record of what happened and what was decided, each with its cause; `enclave why` tells from it.

Nothing with a prompt or a model's words gets in: events and actions carry lengths and numbers, and the one field that
may hold such text, a reason's `detail`, is replaced by its length.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from enum import Enum
from typing import Any, cast

from enclaved.core.events import Action, Event
from enclaved.core.ids import ModelKey
from enclaved.core.reasons import Reason

_NAMES = frozenset({"cause", "client", "device", "instance", "model", "request"})
"""The fields that hold ids. What stands in others is a word of ours, which an id may happen to equal."""
_REDACTED = re.compile(r"<\d+ characters>")
RECORDS_MAX = 4000
"""A few thousand tell some hours of a person's use; at about 400 bytes each they take under 2 MB."""


@dataclass(frozen=True)
class Record:
    """One event, or one action that followed from the event before it."""

    number: int
    at: float
    """The core's `now`, in seconds."""
    kind: str
    """`event` or `action`."""
    said: Event | Action
    because: int | None = None
    """Of an action: the number of the event that it followed from."""

    def to_map(self) -> dict[str, Any]:
        """A plain map with the record's number, time, kind, name and the fields of what was said."""
        named = {"number": self.number, "at": self.at, "kind": self.kind, "name": type(self.said).__name__}
        return named | cast("dict[str, Any]", _plain(self.said))


class Story:
    """The latest records, oldest first."""

    def __init__(self, records_max: int = RECORDS_MAX) -> None:
        self._records: deque[Record] = deque(maxlen=records_max)
        self._number = 0

    def add(self, now: float, event: Event, actions: Iterable[Action]) -> None:
        """Keeps an event and the actions it led to."""
        self._keep(now, "event", event, None)
        because = self._number
        for action in actions:
            self._keep(now, "action", action, because)

    def _keep(self, now: float, kind: str, said: Event | Action, because: int | None) -> None:
        self._number += 1
        self._records.append(Record(self._number, now, kind, _redacted(said), because))

    def copy(self) -> Story:
        """The story until now, for a thread that tells it while it goes on."""
        copy = Story(self._records.maxlen or RECORDS_MAX)
        copy._records.extend(self._records)
        return copy

    def records(self) -> list[Record]:
        """All that is kept, oldest first."""
        return list(self._records)

    def about(self, *ids: str, limit: int | None = None) -> list[Record]:
        """The records that name any of `ids` (a request, client, instance, model, device or cause); all without ids.

        With a limit: the newest so many.
        """
        found = [r for r in self._records if not ids or _mentions(r.said, frozenset(ids))]
        return found if limit is None else found[-limit:] if limit > 0 else []

    def about_models(self, *models: ModelKey, limit: int | None = None) -> list[Record]:
        """The records about models, their instances and the requests for them. With a limit: the newest so many."""
        ids: set[str] = set(models)
        for record in self.about(*models):
            ids |= {getattr(record.said, name) for name in ("request", "instance") if hasattr(record.said, name)}
        return self.about(*ids, limit=limit) if models else []


def _redacted(said: Event | Action) -> Event | Action:
    for slot in fields(said):
        value = getattr(said, slot.name)
        # What was redacted stays as it is, so that a record that is replayed gives the same record again.
        if isinstance(value, Reason) and value.detail and not _REDACTED.fullmatch(value.detail):
            changed: dict[str, Any] = {slot.name: replace(value, detail=f"<{len(value.detail)} characters>")}
            said = replace(said, **changed)
    return said


def _mentions(said: object, ids: frozenset[str]) -> bool:
    if not is_dataclass(said):
        return False
    values = ((slot.name, getattr(said, slot.name)) for slot in fields(said))
    return any(value in ids if name in _NAMES else _mentions(value, ids) for name, value in values)


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value):
        return {slot.name: _plain(getattr(value, slot.name)) for slot in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in cast("Mapping[Any, Any]", value).items()}
    return value
