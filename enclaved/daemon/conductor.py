"""Feeds the core with events and carries its actions out; every action ends in an event.

An action that fails inside, or passes its deadline, ends as failed: no circle stays open. What the actions really do is
the hands' matter.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from enclaved.core.events import (
    Accept,
    Action,
    CancelDispatched,
    Dispatch,
    Event,
    InstanceGone,
    LeaseReturned,
    Load,
    Pause,
    Reject,
    RequestArrived,
    Resume,
    SetThreads,
    Tell,
    Unload,
    Woken,
)
from enclaved.core.reasons import Reason, Why
from enclaved.core.state import State
from enclaved.core.step import step
from enclaved.core.story import Story
from enclaved.daemon.clock import Clock

logger = logging.getLogger("enclaved.conductor")


class Hands(Protocol):
    """What carries actions out. The coroutines may take as long as their own deadlines allow, and never raise for what
    can be expected; the plain methods return at once."""

    async def live(self, action: Load) -> InstanceGone:
        """Starts an instance, tells `InstanceReady` when it is, and returns when its process has exited."""
        ...

    async def unload(self, action: Unload) -> None:
        """Ends an instance; `live` then returns."""
        ...

    async def dispatch(self, action: Dispatch) -> LeaseReturned:
        """Runs a request on its instance to its end."""
        ...

    async def cancel(self, action: CancelDispatched) -> None:
        """Makes a running request end; `dispatch` then returns."""
        ...

    def pause(self, action: Pause) -> None: ...

    def resume(self, action: Resume) -> None: ...

    def reject(self, action: Reject) -> None: ...

    def accept(self, action: Accept) -> None: ...

    def tell(self, action: Tell) -> None: ...

    def set_threads(self, action: SetThreads) -> None: ...


class Conductor:
    """Owns the core's state: everything that changes it goes through `post`."""

    def __init__(self, state: State, story: Story, clock: Clock, tasks: asyncio.TaskGroup) -> None:
        self.on_step: Callable[[], None] = lambda: None
        """Called after each step, when its actions are under way."""
        self.state = state
        """To be read by anybody, changed by nobody else."""
        self.story = story
        self._clock = clock
        self._tasks = tasks
        self._inbox: asyncio.Queue[Event] = asyncio.Queue()
        self._hands: Hands | None = None
        self._quiet = asyncio.Event()

    def employ(self, hands: Hands) -> None:
        """Says who carries actions out; once, before `run`."""
        self._hands = hands

    def post(self, event: Event) -> None:
        """Puts an event into the inbox; events are taken in this order."""
        self._quiet.clear()
        self._inbox.put_nowait(event)

    async def run(self) -> None:
        """Takes events for ever, and wakes the core when it asked for it."""
        wake_at: float | None = None
        while True:
            event = await self._next(wake_at)
            now = self._clock.monotonic()
            wake_at = None
            try:
                decision = step(self.state, event, now)
                self.story.add(now, event, decision.actions)
            except Exception:
                logger.exception("the core failed at %s", type(event).__name__)
                if isinstance(event, RequestArrived):
                    self._carry_out(Reject(event.cause, event.request, Reason(Why.FAILED_INSIDE)))
            else:
                wake_at = decision.wake_at
                for action in decision.actions:
                    self._carry_out(action)
                self._tell_step()
            if self._inbox.empty() and not self.state.instances and not self.state.requests:
                self._quiet.set()

    def _tell_step(self) -> None:
        try:
            self.on_step()
        except Exception:
            logger.exception("a step could not be told")

    async def wait_quiet(self) -> None:
        """Waits until there is neither a request nor an instance, nor an event that may bring one."""
        await self._quiet.wait()

    async def _next(self, wake_at: float | None) -> Event:
        if wake_at is None:
            return await self._inbox.get()
        try:
            async with asyncio.timeout(max(0.0, wake_at - self._clock.monotonic())):
                return await self._inbox.get()
        except TimeoutError:
            return Woken("clock")

    def _carry_out(self, action: Action) -> None:
        hands = self._hands
        assert hands is not None, "employ() comes first"
        match action:
            case Load():
                gone = InstanceGone(action.cause, action.instance, Reason(Why.FAILED_INSIDE))
                self._start(action, hands.live(action), gone)
            case Dispatch():
                lost = Reason(Why.FAILED_INSIDE)
                self._start(
                    action,
                    hands.dispatch(action),
                    LeaseReturned(action.cause, action.request, action.instance, lost=lost),
                )
            case Unload():
                self._start(action, hands.unload(action), None)
            case CancelDispatched():
                self._start(action, hands.cancel(action), None)
            case Pause() | Resume() | Reject() | Accept() | Tell() | SetThreads():
                self._tell(hands, action)

    def _tell(self, hands: Hands, action: Pause | Resume | Reject | Accept | Tell | SetThreads) -> None:
        try:
            match action:
                case Pause():
                    hands.pause(action)
                case Resume():
                    hands.resume(action)
                case Reject():
                    hands.reject(action)
                case Accept():
                    hands.accept(action)
                case Tell():
                    hands.tell(action)
                case SetThreads():
                    hands.set_threads(action)
        except Exception:
            logger.exception("%s failed", type(action).__name__)

    def _start(self, action: Action, work: Coroutine[Any, Any, Event | None], if_it_fails: Event | None) -> None:
        async def carry_out() -> None:
            try:
                event = await work
            except asyncio.CancelledError:
                raise
            except Exception:
                logger.exception("%s failed", type(action).__name__)
                event = if_it_fails
            if event is not None:
                self.post(event)

        self._tasks.create_task(carry_out())
