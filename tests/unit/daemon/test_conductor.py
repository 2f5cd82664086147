"""Every action ends in an event, also when the hands fail; and nothing the hands do ends the conductor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from stand_ins import StandInClock

from enclaved.core.events import (
    Accept,
    CancelDispatched,
    Dispatch,
    InstanceGone,
    InstanceReady,
    LeaseReturned,
    Load,
    Need,
    Pause,
    Reject,
    RequestArrived,
    RequestCancelled,
    Resume,
    SetThreads,
    ShutdownAsked,
    Tell,
    Unload,
    UnloadAsked,
    Wish,
)
from enclaved.core.ids import ClientId, DeviceId, ModelKey, RequestId
from enclaved.core.reasons import Reason, Why
from enclaved.core.state import Device, State
from enclaved.core.story import Story
from enclaved.daemon import conductor as conducting
from enclaved.daemon.conductor import Conductor

pytestmark = pytest.mark.asyncio

SECONDS = 10.0


class RecordingHands:
    """Notes each action; fails, waits or answers as the test says."""

    def __init__(self) -> None:
        self.conductor: Conductor
        self.done: list[Any] = []
        self.failing: set[type[Any]] = set()
        self.unloaded = asyncio.Event()
        self.gone = Reason(Why.UNLOADED)
        self.finish = asyncio.Event()
        self._news: asyncio.Queue[Any] = asyncio.Queue()

    async def until(self, kind: type[Any]) -> Any:
        """The next action of a kind."""
        async with asyncio.timeout(SECONDS):
            while not isinstance(action := await self._news.get(), kind):
                pass
            return action

    def _note(self, action: Any) -> None:
        self.done.append(action)
        self._news.put_nowait(action)
        if type(action) in self.failing:
            raise RuntimeError("the hands fail")

    async def live(self, action: Load) -> InstanceGone:
        self._note(action)
        need = action.need
        self.conductor.post(InstanceReady(action.cause, action.instance, 1, need.sequences, need.context))
        await self.unloaded.wait()
        return InstanceGone(action.cause, action.instance, self.gone)

    async def unload(self, action: Unload) -> None:
        self._note(action)
        self.unloaded.set()

    async def dispatch(self, action: Dispatch) -> LeaseReturned:
        self._note(action)
        await self.finish.wait()
        return LeaseReturned(action.cause, action.request, action.instance)

    async def cancel(self, action: CancelDispatched) -> None:
        self._note(action)
        self.finish.set()

    def pause(self, action: Pause) -> None:
        self._note(action)

    def resume(self, action: Resume) -> None:
        self._note(action)

    def reject(self, action: Reject) -> None:
        self._note(action)

    def accept(self, action: Accept) -> None:
        self._note(action)

    def tell(self, action: Tell) -> None:
        self._note(action)

    def set_threads(self, action: SetThreads) -> None:
        self._note(action)


@asynccontextmanager
async def _conducted() -> AsyncGenerator[tuple[Conductor, RecordingHands]]:
    hands = RecordingHands()
    cpu = Device(DeviceId("cpu"), 100, 4)
    async with asyncio.TaskGroup() as tasks:
        conductor = Conductor(State({cpu.id: cpu}), Story(), StandInClock(), tasks)
        hands.conductor = conductor
        conductor.employ(hands)
        running = tasks.create_task(conductor.run())
        yield conductor, hands
        hands.finish.set()
        hands.unloaded.set()
        running.cancel()


def _request(name: str = "r", *, load_only: bool = False, deadline_at: float | None = None) -> RequestArrived:
    need = Need(ModelKey("m"), DeviceId("cpu"), 100, 2, "f16", None, 10)
    return RequestArrived(
        name, RequestId(name), ClientId("c"), need, Wish(), load_only=load_only, deadline_at=deadline_at
    )


async def _quiet(conductor: Conductor) -> None:
    async with asyncio.timeout(SECONDS):
        await conductor.wait_quiet()


async def test_a_request_goes_its_way_and_the_circle_closes() -> None:
    async with _conducted() as (conductor, hands):
        conductor.post(_request())
        await hands.until(Dispatch)
        hands.finish.set()
        conductor.post(UnloadAsked("u", ModelKey("m")))
        await _quiet(conductor)
        kinds: list[type[Any]] = [type(action) for action in hands.done if not isinstance(action, (Tell, SetThreads))]
        assert kinds == [Load, Dispatch, Unload]


async def test_a_load_that_raises_ends_the_instance_and_its_requests() -> None:
    async with _conducted() as (conductor, hands):
        hands.failing = {Load}
        conductor.post(_request())
        assert (await hands.until(Reject)).reason.why is Why.FAILED_INSIDE
        await _quiet(conductor)


async def test_a_dispatch_that_raises_returns_its_lease_and_tells_the_client() -> None:
    async with _conducted() as (conductor, hands):
        hands.failing = {Dispatch}
        conductor.post(_request())
        assert (await hands.until(Reject)).reason.why is Why.FAILED_INSIDE
        assert not conductor.state.requests
        assert all(not instance.leases for instance in conductor.state.instances.values())


@pytest.mark.parametrize("failing", [Reject, Accept, Tell, SetThreads, Unload, CancelDispatched])
async def test_hands_that_raise_end_neither_the_conductor_nor_other_requests(failing: type[Any]) -> None:
    async with _conducted() as (conductor, hands):
        hands.failing = {failing}
        conductor.post(_request("a", load_only=True))
        await hands.until(Accept)
        conductor.post(_request("b"))
        await hands.until(Dispatch)
        conductor.post(_request("late", deadline_at=0.0))
        await hands.until(Reject)
        conductor.post(RequestCancelled("b", RequestId("b")))
        await hands.until(CancelDispatched)
        hands.finish.set()
        conductor.post(UnloadAsked("u", ModelKey("m")))
        await hands.until(Unload)
        hands.unloaded.set()
        await _quiet(conductor)


async def test_the_core_is_woken_at_the_time_it_asked_for() -> None:
    async with _conducted() as (conductor, hands):
        conductor.post(_request("a"))
        conductor.post(_request("b"))
        await hands.until(Dispatch)
        await hands.until(Dispatch)
        clock: Any = vars(conductor)["_clock"]
        conductor.post(_request("waits", deadline_at=clock.now + 0.02))
        await hands.until(Tell)
        clock.now += 0.02
        rejected = await hands.until(Reject)
        assert (rejected.request, rejected.reason.why) == ("waits", Why.DEADLINE)


async def test_a_core_that_fails_at_one_event_goes_on_with_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    real_step = conducting.step

    def step(state: State, event: Any, now: float) -> Any:
        if event.cause == "bad":
            raise RuntimeError("a defect")
        return real_step(state, event, now)

    monkeypatch.setattr(conducting, "step", step)
    async with _conducted() as (conductor, hands):
        conductor.post(_request("bad"))
        rejected = await hands.until(Reject)
        assert (rejected.request, rejected.reason.why) == ("bad", Why.FAILED_INSIDE)
        conductor.post(_request("good"))
        assert (await hands.until(Dispatch)).request == "good"


async def test_it_is_not_quiet_while_an_event_waits_to_be_taken() -> None:
    async with _conducted() as (conductor, hands):
        conductor.post(UnloadAsked("u", ModelKey("none")))
        await _quiet(conductor)
        conductor.post(_request("a", load_only=True))
        conductor.post(ShutdownAsked("end"))
        await _quiet(conductor)
        assert any(isinstance(action, (Accept, Reject)) for action in hands.done)
        assert not conductor.state.instances
