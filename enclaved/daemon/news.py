"""What subscribers of `events.subscribe` hear: looks at instances and devices after each step of the core, and at the
models whenever somebody lists them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from enclave.protocol.bodies import EVENT_TOPICS, EventsParams, JsonMap, ModelInfo
from enclave.protocol.codec import encode
from enclaved.core.memory import booked_bytes
from enclaved.core.state import State
from enclaved.daemon.broker import Call
from enclaved.daemon.clock import Clock
from enclaved.daemon.hands import WorkerHands
from enclaved.daemon.observe import EventHub
from enclaved.daemon.refusal import RefusalError

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

    def looked(self) -> None:
        """The core has made a step, or an instance has changed."""
        if self._hub.is_watched("instances"):
            self._hub.see("instances", self._instances())
        if self._hub.is_watched("hardware"):
            self._hub.see("hardware", self._devices())

    async def models(self) -> Sequence[ModelInfo]:
        """The models as they are now; who subscribes to them hears what has changed."""
        async with self._listing:
            found = await self._list_models()
            self._hub.see("models", {info.name: encode(info) for info in found})
            return found

    async def subscribe(self, call: Call, params: EventsParams) -> None:
        """Tells the call's client of these topics until it cancels."""
        topics = tuple(dict.fromkeys(params.topics)) or EVENT_TOPICS
        if "models" in topics:
            await self.models()
        if call.wants_cancel:
            call.error(_cancelled())
            return
        self._hub.see("instances", self._instances())
        self._hub.see("hardware", self._devices())
        subscription = self._hub.subscribe(call, topics)
        call.on_drained = subscription.drained

        def end() -> None:
            self._hub.end(subscription)
            call.error(_cancelled())

        call.on_cancel = end

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


def _cancelled() -> RefusalError:
    return RefusalError("cancelled", "The subscription was cancelled.")
