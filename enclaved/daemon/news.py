"""What subscribers of `events.subscribe` hear: looks at instances and devices when the core has made steps, and at the
models whenever somebody lists them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import NoReturn

from enclave.protocol.bodies import EVENT_TOPICS, EventsParams, JsonMap, ModelInfo
from enclave.protocol.codec import encode
from enclaved.core.memory import booked_bytes
from enclaved.core.state import State
from enclaved.daemon.broker import Call
from enclaved.daemon.clock import Clock
from enclaved.daemon.hands import WorkerHands
from enclaved.daemon.observe import EventHub

_RESTLESS = frozenset({"loaded_seconds"})
"""Fields that change by themselves all the time; who wants them asks for the list."""


class News:
    """Turns what things look like into events."""

    def __init__(
        self,
        state: State,
        hands: WorkerHands,
        list_models: Callable[[], Awaitable[Sequence[ModelInfo]]],
        clock: Clock,
    ) -> None:
        self._state = state
        self._hands = hands
        self._list_models = list_models
        self._hub = EventHub(EVENT_TOPICS, clock.wall)
        self._listing = asyncio.Lock()
        """Of two looks at the models the later one counts."""
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

    async def models(self) -> Sequence[ModelInfo]:
        """The models as they are now; who subscribes to them hears what has changed."""
        async with self._listing:
            found = await self._list_models()
            self._hub.see("models", await asyncio.to_thread(lambda: {info.name: encode(info) for info in found}))
            return found

    async def subscribe(self, call: Call, params: EventsParams) -> NoReturn:
        """Tells the call's client of these topics until it is cancelled."""
        topics = tuple(dict.fromkeys(params.topics)) or EVENT_TOPICS
        if "models" in topics:
            await self.models()
        self._hub.see("instances", self._instances())
        self._hub.see("hardware", self._devices())
        subscription = self._hub.subscribe(call, topics)
        call.on_drained = subscription.drained
        try:
            while True:
                await asyncio.Event().wait()
        finally:
            self._hub.end(subscription)

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
