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


async def _no_models() -> Sequence[ModelInfo]:
    return []


def _instance(leases: int) -> InstanceInfo:
    return InstanceInfo(id="i1", model="m", state="ready", wanted="loaded", backend="x", leases=leases)


async def test_a_turn_of_the_loop_is_looked_at_once_and_told_as_it_ended() -> None:
    hands, conversation = StandInHands(), Conversation(name="events.subscribe")
    news = News(State({}), cast("WorkerHands", hands), _no_models, SystemClock())
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
    told: list[EventChunk] = []
    for chunk in conversation.of(Chunk):
        told += read_chunks("events.subscribe", chunk)
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
