"""What subscribers hear of what changes: a snapshot first, then every change in order. Pure.

A topic is a set of things by key. Whoever looks at them says what they look like now (`EventHub.see`); what differs
from last time becomes events, numbered within the topic. A subscriber that reads too slowly costs no memory: it is told
that it is behind, and gets a new snapshot when it reads again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from enclave.protocol.bodies import EventChunk, JsonMap
from enclave.protocol.codec import encode
from enclave.protocol.packing import pack

WAITING_BYTES_MAX = 64 * 1024
"""What may wait for one subscriber: some hundreds of changes, or one thing that is larger. A snapshot is worth more to
whoever is further behind."""


class Reader(Protocol):
    """Where a subscriber's events go."""

    @property
    def waiting_bytes(self) -> int:
        """What waits for the subscriber to ask for it."""
        ...

    @property
    def is_drained(self) -> bool:
        """Whether nothing waits and the subscriber has asked for more."""
        ...

    def chunk(self, body: bytes, count: int) -> None: ...

    def drop_waiting(self) -> None: ...


@dataclass
class _Topic:
    things: dict[str, JsonMap] = field(default_factory=dict[str, JsonMap])
    number: int = 0
    """Changes so far."""


class Subscription:
    """One subscriber and what it has been told."""

    def __init__(self, reader: Reader, topics: Sequence[str], tell_all: Callable[[str, bool], list[bytes]]) -> None:
        """`tell_all(topic, behind)` gives the events that tell a topic anew."""
        self.topics = topics
        self._reader = reader
        self._tell_all = tell_all
        self._owed = True
        """Whether it is to get snapshots before it hears of any change."""
        self._behind = False

    def drained(self) -> None:
        """The reader can take more: what is owed goes out as things are now."""
        if self._owed and self._reader.is_drained:
            self._owed = False
            for topic in self.topics:
                for body in self._tell_all(topic, self._behind):
                    self._reader.chunk(body, 1)
            self._behind = False

    def changed(self, topic: str, body: bytes) -> None:
        """Something of a topic has changed."""
        if self._owed or topic not in self.topics:
            return
        waiting_bytes = self._reader.waiting_bytes
        if waiting_bytes and waiting_bytes + len(body) > WAITING_BYTES_MAX:
            self._reader.drop_waiting()
            self._owed = self._behind = True
            self.drained()
        else:
            self._reader.chunk(body, 1)


class EventHub:
    """The topics and their subscribers."""

    def __init__(self, topics: Sequence[str], wall: Callable[[], float]) -> None:
        """`wall` gives the time in seconds since 1970."""
        self._topics = {name: _Topic() for name in topics}
        self._wall = wall
        self._subscriptions: list[Subscription] = []

    def is_watched(self, topic: str) -> bool:
        """Whether looking at a topic is worth it."""
        return any(topic in subscription.topics for subscription in self._subscriptions)

    def see(self, topic: str, things: Mapping[str, JsonMap]) -> None:
        """This is what the topic consists of now."""
        self.update(topic, things, gone=[key for key in self._topics[topic].things if key not in things])

    def update(self, topic: str, things: Mapping[str, JsonMap], *, gone: Iterable[str] = ()) -> None:
        """These things of the topic are so now, those are gone; the others are as they were."""
        known = self._topics[topic].things
        for key in gone:
            if key in known:
                self._tell(topic, "removed", key, known.pop(key))
        for key, thing in things.items():
            before = known.get(key)
            known[key] = thing
            if before is None:
                self._tell(topic, "added", key, thing)
            elif thing != before:
                self._tell(topic, "changed", key, thing)

    def subscribe(self, reader: Reader, topics: Sequence[str]) -> Subscription:
        """Tells a reader of these topics from now on; they must have been seen just before."""
        subscription = Subscription(reader, topics, self._anew)
        self._subscriptions.append(subscription)
        subscription.drained()
        return subscription

    def end(self, subscription: Subscription) -> None:
        """Tells it nothing more. Ending twice is harmless."""
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)

    def _tell(self, topic: str, name: str, key: str, thing: JsonMap) -> None:
        known = self._topics[topic]
        known.number += 1
        if not self.is_watched(topic):
            return
        event = EventChunk(topic=topic, name=name, number=known.number, at=self._wall(), key=key)
        body = _body_of(event, thing)
        for subscription in list(self._subscriptions):
            subscription.changed(topic, body)

    def _anew(self, topic: str, behind: bool) -> list[bytes]:
        known = self._topics[topic]
        at, number = self._wall(), known.number
        told = [pack(encode(EventChunk(topic=topic, name="behind", number=number, at=at)))] if behind else []
        told.append(_body_of(EventChunk(topic=topic, name="snapshot", number=number, at=at), known.things))
        return told


def _body_of(event: EventChunk, data: Mapping[str, object]) -> bytes:
    """An event with its data, which is plain already: to go through ten thousand things again takes a third of a
    second, in which nobody else is answered."""
    return pack({**encode(event), "data": data})
