"""What subscribers of `events.subscribe` hear: looks at instances and devices when the core has made steps, and at the
models that the catalog says have changed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NoReturn, Protocol

from enclave.protocol.bodies import EVENT_TOPICS, EventsParams, JsonMap, ModelInfo
from enclave.protocol.codec import encode
from enclaved.core.memory import booked_bytes
from enclaved.core.state import State
from enclaved.daemon.broker import Call
from enclaved.daemon.catalog import Changes
from enclaved.daemon.clock import Clock
from enclaved.daemon.hands import WorkerHands
from enclaved.daemon.observe import EventHub, Subscription

TOLD_AT_ONCE = 200
"""Models; what else the daemon has to do comes between them and the next."""

_RESTLESS = frozenset({"loaded_seconds"})
"""Fields that change by themselves all the time; who wants them asks for the list."""


class ModelBook(Protocol):
    """Where the models come from."""

    async def look(self) -> None:
        """Looks at every source anew."""
        ...

    async def infos(self, names: Sequence[str]) -> Sequence[ModelInfo]:
        """Those of these models that are there."""
        ...

    async def all_infos(self) -> Sequence[ModelInfo]: ...


class News:
    """Turns what things look like into events."""

    def __init__(
        self,
        state: State,
        hands: WorkerHands,
        models: ModelBook,
        clock: Clock,
    ) -> None:
        self._state = state
        self._hands = hands
        self._models = models
        self._hub = EventHub(EVENT_TOPICS, clock.wall)
        self._telling_models = asyncio.Lock()
        """Of two changes of the models the later one is told later."""
        self._subscribing = 0
        """Who reads the models to begin with. What changes meanwhile is news to them, too."""
        self._will_look = False

    def looked(self) -> None:
        """The core has made a step, or an instance has changed. Looked at once for all that happens in a turn of the
        loop."""
        if not self._will_look:
            self._will_look = True
            asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        self._will_look = False
        if self._hub.is_watched("instances"):
            self._hub.see("instances", self._instances())
        if self._hub.is_watched("hardware"):
            self._hub.see("hardware", self._devices())

    async def models_changed(self, changes: Changes) -> None:
        """The catalog has changed so; who subscribes to the models hears of it."""
        if not self._subscribing and not self._hub.is_watched("models"):
            return
        async with self._telling_models:
            for gone in _batches(changes.removed):
                self._hub.update("models", {}, gone=gone)
                await asyncio.sleep(0)
            for names in _batches((*changes.added, *changes.changed)):
                self._hub.update("models", await _by_name(await self._models.infos(names)))

    async def subscribe(self, call: Call, params: EventsParams) -> NoReturn:
        """Tells the call's client of these topics until it is cancelled."""
        topics = tuple(dict.fromkeys(params.topics)) or EVENT_TOPICS
        if "models" not in topics:
            subscription = self._subscribed(call, topics)
        else:
            await self._models.look()
            self._subscribing += 1
            try:
                async with self._telling_models:
                    self._hub.see("models", await _by_name(await self._models.all_infos()))
                    subscription = self._subscribed(call, topics)
            finally:
                self._subscribing -= 1
        try:
            while True:
                await asyncio.Event().wait()
        finally:
            self._hub.end(subscription)

    def _subscribed(self, call: Call, topics: Sequence[str]) -> Subscription:
        self._hub.see("instances", self._instances())
        self._hub.see("hardware", self._devices())
        subscription = self._hub.subscribe(call, topics)
        call.on_drained = subscription.drained
        return subscription

    def _instances(self) -> dict[str, JsonMap]:
        return {
            info.id: {name: value for name, value in encode(info).items() if name not in _RESTLESS}
            for info in self._hands.instances(self._state)
        }

    def _devices(self) -> dict[str, JsonMap]:
        return {
            device.id: {
                "capacity_bytes": device.capacity_bytes,
                "booked_bytes": booked_bytes(self._state, device.id),
                "cores": device.cores,
                "threads_granted": sum(
                    each.threads
                    for each in self._state.instances.values()
                    if each.is_busy and each.need.device == device.id
                ),
            }
            for device in self._state.devices.values()
        }


def _batches(names: Sequence[str]) -> list[Sequence[str]]:
    return [names[start : start + TOLD_AT_ONCE] for start in range(0, len(names), TOLD_AT_ONCE)]


async def _by_name(infos: Sequence[ModelInfo]) -> dict[str, JsonMap]:
    """In a thread: there may be ten thousand."""
    return await asyncio.to_thread(lambda: {info.name: encode(info) for info in infos})
