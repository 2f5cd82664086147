"""What subscribers are told of instances: as often as it is worth it, and how it is in the end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

import pytest
from stand_ins import Conversation

from enclave.protocol import Chunk, read_chunks
from enclave.protocol.bodies import EventChunk, EventsParams, InstanceInfo, ModelInfo
from enclaved.core.state import State
from enclaved.daemon.catalog import Changes
from enclaved.daemon.clock import SystemClock
from enclaved.daemon.hands import WorkerHands
from enclaved.daemon.news import News

pytestmark = pytest.mark.asyncio


class StandInHands:
    """Instances as the test says, and how often somebody looked."""

    def __init__(self) -> None:
        self.infos: list[InstanceInfo] = []
        self.looks = 0

    def instances(self, state: State) -> Sequence[InstanceInfo]:
        self.looks += 1
        return list(self.infos)


class StandInBook:
    """Models as the test says."""

    def __init__(self) -> None:
        self.models: dict[str, ModelInfo] = {}
        self.looks = 0

    async def look(self) -> None:
        self.looks += 1

    async def infos(self, names: Sequence[str]) -> Sequence[ModelInfo]:
        return [self.models[name] for name in names if name in self.models]

    async def all_infos(self) -> Sequence[ModelInfo]:
        return list(self.models.values())


def _instance(leases: int) -> InstanceInfo:
    return InstanceInfo(id="i1", model="m", state="ready", wanted="loaded", backend="x", leases=leases)


def _told(conversation: Conversation) -> list[EventChunk]:
    told: list[EventChunk] = []
    for chunk in conversation.of(Chunk):
        told += read_chunks("events.subscribe", chunk)
    return told


async def test_a_turn_of_the_loop_is_looked_at_once_and_told_as_it_ended() -> None:
    hands, conversation = StandInHands(), Conversation(name="events.subscribe")
    news = News(State({}), cast("WorkerHands", hands), StandInBook(), SystemClock())
    subscribing = asyncio.create_task(news.subscribe(conversation.call, EventsParams(topics=("instances",))))
    await asyncio.sleep(0)
    before = hands.looks
    for leases in range(100):
        hands.infos = [_instance(leases)]
        news.looked()
    await asyncio.sleep(0)
    hands.infos = []
    news.looked()
    await asyncio.sleep(0)
    assert hands.looks - before == 2
    told = _told(conversation)
    assert [(event.name, (event.data or {}).get("leases")) for event in told] == [
        ("snapshot", None),
        ("added", 99),
        ("removed", 99),
    ]
    subscribing.cancel()
    await asyncio.wait([subscribing])
    news.looked()
    await asyncio.sleep(0)
    assert hands.looks - before == 2


def _model(name: str, size: int = 0) -> ModelInfo:
    return ModelInfo(name=name, source="one", size=size)


async def test_who_subscribes_to_the_models_hears_what_the_catalog_says_has_changed() -> None:
    conversation, book = Conversation(name="events.subscribe"), StandInBook()
    book.models = {"a": _model("a"), "b": _model("b"), "c": _model("c")}
    news = News(State({}), cast("WorkerHands", StandInHands()), book, SystemClock())
    await news.models_changed(Changes(added=("a",)))  # heard by nobody
    subscribing = asyncio.create_task(news.subscribe(conversation.call, EventsParams(topics=("models",))))
    await conversation.wait_received(Chunk)
    assert book.looks == 1
    book.models = {"a": _model("a", 1), "c": _model("c"), "d": _model("d")}
    await news.models_changed(Changes(added=("d",), changed=("a", "c"), removed=("b", "z")))
    assert [(event.name, event.key) for event in _told(conversation)] == [
        ("snapshot", None),
        ("removed", "b"),
        ("added", "d"),
        ("changed", "a"),
    ]
    assert set(_told(conversation)[0].data or {}) == {"a", "b", "c"}
    subscribing.cancel()
    await asyncio.wait([subscribing])


async def test_what_changes_while_the_first_snapshot_is_read_is_told_after_it() -> None:
    conversation, book = Conversation(name="events.subscribe"), StandInBook()
    news = News(State({}), cast("WorkerHands", StandInHands()), book, SystemClock())
    book.models = {"a": _model("a")}
    telling: list[asyncio.Task[None]] = []

    async def all_infos() -> Sequence[ModelInfo]:
        found = list(book.models.values())
        book.models = {"b": _model("b")}
        telling.append(asyncio.create_task(news.models_changed(Changes(added=("b",), removed=("a",)))))
        await asyncio.sleep(0)
        return found

    book.all_infos = all_infos
    subscribing = asyncio.create_task(news.subscribe(conversation.call, EventsParams(topics=("models",))))
    await conversation.wait_received(Chunk)
    await asyncio.gather(*telling)
    assert [(event.name, event.key) for event in _told(conversation)] == [
        ("snapshot", None),
        ("removed", "a"),
        ("added", "b"),
    ]
    subscribing.cancel()
    await asyncio.wait([subscribing])
