"""Feeds the core by plain calls and checks every invariant after each; sizes are a few bytes, a second is an event.

Models are named by letters, and tests name instances by their model: there is at most one of each.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from enclaved.core import invariants
from enclaved.core.events import (
    Action,
    Event,
    InstanceGone,
    InstanceReady,
    LeasePaused,
    LeaseResumed,
    LeaseReturned,
    Load,
    Need,
    Priority,
    RequestArrived,
    RequestCancelled,
    ShutdownAsked,
    UnloadAsked,
    Wish,
    Woken,
)
from enclaved.core.ids import ClientId, DeviceId, InstanceId, ModelKey, RequestId
from enclaved.core.reasons import Reason, Why
from enclaved.core.state import Device, Instance, Limits, State
from enclaved.core.step import step
from enclaved.core.story import Story

A = TypeVar("A")
NO_WISH = Wish()


def match(actions: Iterable[object], kind: type[A], **fields: object) -> list[A]:
    """The actions (or events) of a kind whose named fields have these values; a dot is written as two underscores."""
    return [
        action
        for action in actions
        if isinstance(action, kind) and all(_field(action, name) == value for name, value in fields.items())
    ]


def _field(value: object, name: str) -> object:
    for part in name.split("__"):
        value = getattr(value, part)
    return value


def a_need(
    model: str = "a",
    size: int = 4,
    *,
    device: str = "cpu",
    context: int = 4096,
    sequences: int = 1,
    kv_type: str = "f16",
    flash_attention: bool | None = None,
) -> Need:
    """A need with everything but the model and its bytes filled in."""
    return Need(ModelKey(model), DeviceId(device), context, sequences, kv_type, flash_attention, size)


class Core:
    """A state, its clock and its story."""

    def __init__(
        self, memory: int = 10, cores: int = 4, limits: Limits | None = None, devices: Iterable[Device] | None = None
    ) -> None:
        found = list(devices) if devices is not None else [Device(DeviceId("cpu"), memory, cores)]
        self.state = State({device.id: device for device in found}, limits or Limits())
        self.now = 0.0
        self.wake_at: float | None = None
        self.story = Story()
        self.actions: list[Action] = []
        """Everything decided so far."""

    def feed(self, event: Event, at: float | None = None) -> tuple[Action, ...]:
        """One step, a second after the one before (or at a time); fails when an invariant does."""
        self.now = self.now + 1.0 if at is None else at
        decision = step(self.state, event, self.now)
        self.story.add(self.now, event, decision.actions)
        broken = invariants.check(self.state)
        assert broken == [], (broken, event, decision.actions)
        assert decision.wake_at is None or decision.wake_at > self.now
        self.wake_at = decision.wake_at
        self.actions += decision.actions
        return decision.actions

    def request(
        self,
        request: str,
        model: str = "a",
        size: int = 4,
        *,
        need: Need | None = None,
        wish: Wish = NO_WISH,
        client: str = "client",
        priority: Priority = "normal",
        deadline_at: float | None = None,
        load_only: bool = False,
    ) -> tuple[Action, ...]:
        """A request comes; its cause is its id with `cause-` before it."""
        return self.feed(
            RequestArrived(
                f"cause-{request}",
                RequestId(request),
                ClientId(client),
                need or a_need(model, size),
                wish,
                priority,
                deadline_at,
                load_only,
            )
        )

    def cancel(self, request: str) -> tuple[Action, ...]:
        return self.feed(RequestCancelled(f"cancel-{request}", RequestId(request)))

    def returned(self, request: str, lost: Why | None = None) -> tuple[Action, ...]:
        """The request's lease comes back from wherever it runs."""
        return self.feed(
            LeaseReturned(
                f"end-{request}",
                RequestId(request),
                self._where(request),
                lost=None if lost is None else Reason(lost, {}, "words"),
            )
        )

    def pauses(self, request: str) -> tuple[Action, ...]:
        """The request's client stops reading."""
        return self.feed(LeasePaused(f"pause-{request}", RequestId(request), self._where(request)))

    def resumes(self, request: str) -> tuple[Action, ...]:
        """The request's client reads again."""
        return self.feed(LeaseResumed(f"resume-{request}", RequestId(request), self._where(request)))

    def _where(self, request: str) -> InstanceId:
        instance = self.state.requests[RequestId(request)].instance
        assert instance is not None
        return instance

    def ready(
        self, model: str = "a", *, measured: int | None = None, sequences: int | None = None
    ) -> tuple[Action, ...]:
        """The load of a model ends well, with what was asked for if not said otherwise."""
        instance = self.instance(model)
        return self.feed(
            InstanceReady(
                f"ready-{model}",
                instance.id,
                instance.need.bytes_estimated if measured is None else measured,
                instance.need.sequences if sequences is None else sequences,
                instance.need.context,
            )
        )

    def gone(self, model: str = "a", why: Why = Why.UNLOADED) -> tuple[Action, ...]:
        return self.feed(InstanceGone(f"gone-{model}", self.instance(model).id, Reason(why, {}, "words")))

    def unload(self, model: str = "a") -> tuple[Action, ...]:
        return self.feed(UnloadAsked(f"unload-{model}", ModelKey(model)))

    def shut_down(self) -> tuple[Action, ...]:
        return self.feed(ShutdownAsked("shutdown"))

    def wake(self, at: float) -> tuple[Action, ...]:
        return self.feed(Woken("woken"), at)

    def load(self, model: str = "a", size: int = 4, *, sequences: int = 1, need: Need | None = None) -> InstanceId:
        """Brings a model into memory, with nothing running on it."""
        self.request(f"load-{model}", need=need or a_need(model, size, sequences=sequences), load_only=True)
        self.ready(model)
        return self.instance(model).id

    def instance(self, model: str = "a") -> Instance:
        """The instance of a model, which must be there."""
        found = self.state.instance_of(ModelKey(model))
        assert found is not None
        return found

    def kinds(self, actions: Iterable[Action]) -> list[str]:
        """The names of the actions, in order, without those that only tell."""
        return [type(action).__name__ for action in actions if type(action).__name__ not in {"Tell", "SetThreads"}]

    def loads(self, model: str) -> int:
        """How often a model was loaded so far."""
        return len(match(self.actions, Load, need__model=model))
