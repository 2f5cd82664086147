"""What the daemon's events say, for a person: one line each, and of a change only what is different.

An event brings a thing as it is now; what it was before is remembered here, from the snapshot on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import tzinfo
from typing import TYPE_CHECKING, TypeAlias, cast

from enclave_cli.commands.ps import clients, state
from enclave_cli.output import LOOSE_COLUMNS_MAX, NOTHING, clock_time, count, line, measures, padded, shortened, size

if TYPE_CHECKING:
    from enclave.protocol.bodies import EventChunk

Told: TypeAlias = dict[str, str]
"""What is told of a thing, by what it is called."""

_COLUMNS = (12, 9, 8, 8)
"""Of the time, the topic, the event and the key: lines come one by one, so that the widest cell is not known."""

BEHIND = "what came meanwhile is left out; all of it follows"
EMPTY = "nothing"


class Changes:
    """Remembers what every thing was, as far as the events have told it."""

    def __init__(self, *, terminal: bool = False, zone: tzinfo | None = None) -> None:
        """On a terminal, the long path of a model is shortened; times are of `zone`, by default the local one."""
        self._terminal = terminal
        self._zone = zone
        self._things: dict[tuple[str, str], Mapping[str, object]] = {}

    @staticmethod
    def heading() -> str:
        """The line above all others."""
        return _row("TIME", "TOPIC", "EVENT", "KEY", "WHAT")

    def lines(self, event: EventChunk) -> list[str]:
        """What an event says: a line, of a snapshot one for each thing in it."""
        data = event.data or {}
        if event.name == "snapshot":
            self._things = {place: thing for place, thing in self._things.items() if place[0] != event.topic}
            told = [self._line(event, key, self._first(event, key, _map(thing))) for key, thing in data.items()]
            return told or [self._line(event, "", EMPTY)]
        return [self._line(event, event.key or "", self._what(event, event.key or "", data))]

    def _what(self, event: EventChunk, key: str, thing: Mapping[str, object]) -> str:
        if event.name == "behind":
            return BEHIND
        if event.name == "removed":
            self._things.pop((event.topic, key), None)
            return self._subject(event.topic, thing)
        if event.name == "changed" and (event.topic, key) in self._things:
            return self._different(event, key, thing)
        return self._first(event, key, thing)

    def _first(self, event: EventChunk, key: str, thing: Mapping[str, object]) -> str:
        self._things[event.topic, key] = thing
        (told,) = told_of(event.topic, thing)
        words = [f"{name} {value}" for name, value in told.items() if value not in ("", "0", NOTHING)]
        return _about(self._subject(event.topic, thing), words)

    def _different(self, event: EventChunk, key: str, thing: Mapping[str, object]) -> str:
        before, self._things[event.topic, key] = self._things[event.topic, key], thing
        words = _differences(*told_of(event.topic, before, thing))
        return _about(self._subject(event.topic, thing), words or _differences(all_of(before), all_of(thing)))

    def _subject(self, topic: str, thing: Mapping[str, object]) -> str:
        """Whom it is about, where the key is but an id."""
        model = line(str(thing.get("model", ""))) if topic == "instances" else ""
        return shortened(model, LOOSE_COLUMNS_MAX) if self._terminal else model

    def _line(self, event: EventChunk, key: str, what: str) -> str:
        return _row(clock_time(event.at, self._zone), event.topic, event.name, key or NOTHING, what)


def told_of(topic: str, *things: Mapping[str, object]) -> list[Told]:
    """What a person is told of things of one topic: of those known here what matters, of others all there is."""
    known = _TELLERS.get(topic)
    if known is not None:
        from enclave.protocol.errors import RemoteProtocolError

        try:
            return [known(thing) for thing in things]
        except RemoteProtocolError:
            pass  # another daemon's idea of such a thing
    return [all_of(thing) for thing in things]


def all_of(thing: Mapping[str, object]) -> Told:
    """Whatever is known of a thing."""
    return {name.removesuffix("_bytes").replace("_", " "): value for name, value in measures(thing)}


def _instance(thing: Mapping[str, object]) -> Told:
    from enclave.protocol.bodies import InstanceInfo
    from enclave.protocol.codec import decode

    instance = decode(InstanceInfo, thing)
    return {
        "state": state(instance),
        "backend": instance.backend,
        "device": instance.device or "",
        "memory": size(instance.memory.measured_bytes),
        "context": count(instance.context),
        "threads": count(instance.threads),
        "running": count(instance.leases),
        "queued": count(instance.queued),
        "clients": clients(instance),
    }


def _model(thing: Mapping[str, object]) -> Told:
    from enclave.protocol.bodies import ModelInfo
    from enclave.protocol.codec import decode

    model = decode(ModelInfo, thing)
    return {
        "source": model.source,
        "size": size(model.size),
        "backends": ", ".join(model.backends),
        "aliases": ", ".join(model.aliases),
        "default": "yes" if model.default else "",
        "path": model.path or "",
    }


_TELLERS: Mapping[str, Callable[[Mapping[str, object]], Told]] = {"instances": _instance, "models": _model}


def _differences(before: Told, now: Told) -> list[str]:
    return [
        f"{name} {before.get(name) or NOTHING} → {now.get(name) or NOTHING}"
        for name in dict.fromkeys([*now, *before])
        if before.get(name) != now.get(name)
    ]


def _map(thing: object) -> Mapping[str, object]:
    return cast("Mapping[str, object]", thing) if isinstance(thing, Mapping) else {}


def _about(subject: str, words: list[str]) -> str:
    return ": ".join(part for part in (subject, ", ".join(words)) if part)


def _row(*cells: str) -> str:
    *first, last = (line(cell) for cell in cells)
    return "  ".join([*(padded(cell, columns) for cell, columns in zip(first, _COLUMNS, strict=True)), last]).rstrip()
