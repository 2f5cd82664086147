"""A world around the core: it carries actions out late, badly or not at all, and keeps books of its own about them.

Everything is drawn from one random source: the machine, the models, who asks for what, how long things take and what
fails. `trouble` goes on for a while; then `heal` lets everything under way end well and nothing new begin, and says
how many events that took. Each action is held against the world's own books before it counts, so a mistake of the core
is not excused by the same mistake in its state.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from core_driver import Core

from enclaved.core.events import (
    Accept,
    Action,
    CancelDispatched,
    Dispatch,
    Event,
    InstanceGone,
    InstanceReady,
    LeasePaused,
    LeaseResumed,
    LeaseReturned,
    Load,
    Need,
    Pause,
    Priority,
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
    Woken,
)
from enclaved.core.ids import ClientId, DeviceId, InstanceId, ModelKey, RequestId
from enclaved.core.reasons import Reason, Why
from enclaved.core.state import Device, Limits

BAD_LOADS = (Why.LOAD_FAILED, Why.LOAD_OUT_OF_MEMORY, Why.LAUNCH_FAILED, Why.WORKER_DIED, Why.TIMED_OUT)
PRIORITIES: tuple[Priority, ...] = ("interactive", "normal", "background")


@dataclass
class Worker:
    """A process as it really is, whatever the core thinks."""

    need: Need
    threads: int
    bytes_booked: int
    sequences: int | None = None
    """None until the core was told that it is ready."""
    asked_to_go: bool = False
    dead: bool = False
    running: set[RequestId] = field(default_factory=set[RequestId])
    paused: set[RequestId] = field(default_factory=set[RequestId])

    @property
    def sequences_used(self) -> int:
        return len(self.running - self.paused)

    @property
    def is_busy(self) -> bool:
        return not self.asked_to_go and (self.sequences is None or self.sequences_used > 0)


@dataclass
class Client:
    """What the one who asked knows of a request."""

    arrival: RequestArrived
    instance: InstanceId | None = None
    cancels: int = 0


class Environment:
    """One world. `core` is driven through `Core.feed`, which checks every invariant after each event."""

    def __init__(self, random: Random) -> None:
        self.random = random
        devices = [
            Device(DeviceId(name), random.randint(4, 30), random.randint(1, 6))
            for name in ("cpu", "gpu")[: random.randint(1, 2)]
        ]
        limits = Limits(
            queued_per_client_max=random.randint(1, 8),
            queued_max=random.randint(1, 12),
            deaths_before_back_off=random.randint(1, 3),
            back_off_seconds=random.choice([0.0, 1.0, 2.0]),
            back_off_seconds_max=8.0,
        )
        self.core = Core(devices=devices, limits=limits)
        self.models = [(ModelKey(f"m{n}"), random.randint(1, 12)) for n in range(random.randint(1, 5))]
        self.faults = random.choice([0.0, 0.1, 0.4])
        self.coming: list[tuple[float, int, Event]] = []
        """The ends of what is under way, by the time they arrive."""
        self.workers: dict[InstanceId, Worker] = {}
        self.open: dict[RequestId, Client] = {}
        self.ended: Counter[RequestId] = Counter()
        self.lost: dict[RequestId, Client] = {}
        """Those whose end the core has been told of, and whose clients it must tell in the same step."""
        self.made = 0
        """Requests so far; they are called r1, r2, …"""
        self.begun = 0
        """Ends put into `coming` so far: two of one time arrive in this order."""
        self.events = 0

    # What happens from outside.

    def trouble(self, events: int) -> None:
        """So many events, with everything that can go wrong going wrong now and then."""
        happenings: list[tuple[int, Callable[[], None]]] = [
            (40, self._arrive),
            (60, self._next),
            (8, self._cancel),
            (8, self._pause),
            (6, self._resume),
            (2, self._unload),
            (4 if self.faults else 0, self._kill),
            (4, self._repeat),
        ]
        weights = [weight for weight, _ in happenings]
        for _ in range(events):
            [(_, happen)] = self.random.choices(happenings, weights)
            happen()

    def shut_down(self) -> None:
        self._feed(ShutdownAsked("shutdown"), self._soon())

    def heal(self) -> int:
        """Delivers what is under way, without further faults, until nothing is left to happen; how many events."""
        self.faults = 0.0
        before = self.events
        for name, worker in list(self.workers.items()):
            for request in sorted(worker.paused & worker.running):
                self._feed(LeaseResumed("client", request, name), self._soon())
        bound = before + 100 + 20 * (len(self.open) + len(self.workers) + len(self.coming))
        while self.coming or self.core.wake_at is not None:
            self._next()
            assert self.events <= bound, "it goes on for ever"
        return self.events - before

    def _soon(self) -> float:
        """A moment before the next thing happens by itself; two things may happen at one time."""
        times = [at for at, _, _ in self.coming[:1]] + [at for at in (self.core.wake_at,) if at is not None]
        return min([self.core.now + self.random.choice([0.0, 0.01, 0.5]), *times])

    def _arrive(self) -> None:
        self.made += 1
        model, size = self.random.choice(self.models)
        factor = self.random.choice([1, 1, 1, 2])
        device = self.random.choice(list(self.core.state.devices))
        kv_type = self.random.choice(["f16", "f16", "q8_0"])
        need = Need(model, device, 1024 * factor, self.random.randint(1, 3), kv_type, None, size * factor)
        wish = Wish(
            context=self.random.choice([None, None, need.context, 1_000_000]),
            kv_type=self.random.choice([None, None, kv_type]),
            sequences=self.random.choice([None, None, need.sequences]),
            flash_attention=self.random.choice([None, None, None, True]),
        )
        now = self._soon()
        arrival = RequestArrived(
            cause=f"cause-{self.made}",
            request=RequestId(f"r{self.made}"),
            client=ClientId(f"client-{self.random.randint(1, 3)}"),
            need=need,
            wish=wish,
            priority=self.random.choice(PRIORITIES),
            deadline_at=self.random.choice([None, None, None, now, now + self.random.uniform(0.0, 20.0), math.inf]),
            load_only=self.random.random() < 0.1,
        )
        self.open[arrival.request] = Client(arrival)
        self._feed(arrival, now)

    def _cancel(self) -> None:
        if self.made:
            request = RequestId(f"r{self.random.randint(1, self.made)}")
            self._feed(RequestCancelled("cancel", request), self._soon())

    def _stir(self, kind: type[LeasePaused | LeaseResumed]) -> None:
        """A client stops reading, or reads again."""
        running = sorted((request, name) for name, worker in self.workers.items() for request in worker.running)
        if running:
            request, instance = self.random.choice(running)
            self._feed(kind("client", request, instance), self._soon())

    def _pause(self) -> None:
        self._stir(LeasePaused)

    def _resume(self) -> None:
        self._stir(LeaseResumed)

    def _unload(self) -> None:
        model, _ = self.random.choice(self.models)
        self._feed(UnloadAsked("unload", model), self._soon())

    def _kill(self) -> None:
        if self.workers:
            self._die(self.random.choice(list(self.workers)))

    def _repeat(self) -> None:
        """An event that the core has seen comes again, except arrivals, whose ids are never used twice."""
        seen = [record.said for record in self.core.story.records()[-60:] if isinstance(record.said, Event)]
        seen = [event for event in seen if not isinstance(event, RequestArrived) or event.request in self.open]
        seen = [event for event in seen if not isinstance(event, ShutdownAsked | UnloadAsked)]
        if seen:
            self._feed(self.random.choice(seen), self._soon())

    def _next(self) -> None:
        """Whatever comes first: the end of something under way, or the time the core wants to be woken at."""
        wake_at = self.core.wake_at
        if wake_at is not None and (not self.coming or wake_at <= self.coming[0][0]):
            self._feed(Woken("woken"), wake_at)
        elif self.coming:
            at, _, event = heapq.heappop(self.coming)
            self._feed(event, max(at, self.core.now))

    # How actions end.

    def _later(self, event: Event, seconds_max: float = 5.0) -> None:
        at = self.core.now + self.random.uniform(0.0, seconds_max)
        self.begun += 1
        heapq.heappush(self.coming, (at, self.begun, event))

    def _fails(self) -> bool:
        return self.random.random() < self.faults

    def _die(self, instance: InstanceId) -> None:
        """The process ends by itself; the core hears of it, and of what ran on it, in any order."""
        worker = self.workers[instance]
        if worker.dead:
            return
        worker.dead = True
        reason = Reason(self.random.choice([Why.WORKER_DIED, Why.TIMED_OUT]), {}, "words")
        for request in sorted(worker.running):
            if self.random.random() < 0.5:
                self._later(LeaseReturned("died", request, instance, lost=reason))
        self._later(InstanceGone("died", instance, reason))

    def _feed(self, event: Event, at: float) -> None:
        self.events += 1
        match event:
            case InstanceReady() if event.instance in self.workers:
                worker = self.workers[event.instance]
                if worker.sequences is None and not worker.asked_to_go:
                    worker.sequences = max(1, event.sequences)
                    worker.bytes_booked = max(worker.bytes_booked, event.bytes_measured)
            case InstanceGone() if event.instance in self.workers:
                worker = self.workers.pop(event.instance)
                self.lost |= {request: self.open.pop(request) for request in worker.running}
            case LeaseReturned() if event.request in self.open:
                client = self.open[event.request]
                if client.instance == event.instance:
                    self.workers[event.instance].running.discard(event.request)
                    self.workers[event.instance].paused.discard(event.request)
                    del self.open[event.request]
                    if event.lost is None:
                        self.ended[event.request] += 1
                    else:
                        self.lost[event.request] = client
            case _:
                pass
        for action in self.core.feed(event, at):
            self._carry_out(action, event)
            self._check_threads()
        assert self.lost == {}, "nobody told the clients of what was lost"

    def _carry_out(self, action: Action, event: Event) -> None:
        """Holds an action that followed from an event against the books, then does it."""
        match action:
            case Load():
                device = action.need.device
                there = [worker for worker in self.workers.values() if worker.need.device == device]
                booked = sum(worker.bytes_booked for worker in there) + action.need.bytes_estimated
                assert booked <= self.core.state.devices[device].capacity_bytes, "does not fit"
                assert all(worker.need.model != action.need.model for worker in self.workers.values()), "there already"
                assert action.instance not in self.workers
                self.workers[action.instance] = Worker(action.need, action.threads, action.need.bytes_estimated)
                self._load_ends(action)
            case Unload():
                worker = self.workers[action.instance]
                assert not worker.running, "is leased"
                assert not worker.asked_to_go, "was asked already"
                if worker.sequences is None and not isinstance(event, UnloadAsked | ShutdownAsked):
                    waited_for = {client.arrival.need.model for client in self.open.values()}
                    assert worker.need.model not in waited_for, "is waited for"
                worker.asked_to_go = True
                if not worker.dead:
                    worker.dead = True
                    why = Why.TIMED_OUT if self._fails() else Why.UNLOADED
                    self._later(InstanceGone(action.cause, action.instance, Reason(why)))
            case Dispatch():
                worker, client = self.workers[action.instance], self.open[action.request]
                assert worker.sequences is not None, "is not ready"
                assert worker.sequences_used < worker.sequences, "is full"
                assert not worker.asked_to_go, "is to go"
                assert client.instance is None, "runs already"
                assert client.arrival.need.model == worker.need.model
                assert not client.arrival.load_only
                assert client.arrival.deadline_at is None or client.arrival.deadline_at > self.core.now, "is late"
                client.instance = action.instance
                worker.running.add(action.request)
                self._dispatch_ends(action, worker)
            case Pause():
                worker = self.workers[action.instance]
                assert action.request in worker.running, "does not run"
                assert action.request not in worker.paused, "is paused already"
                worker.paused.add(action.request)
            case Resume():
                worker = self.workers[action.instance]
                assert worker.sequences is not None, "is not ready"
                assert action.request in worker.paused, "is not paused"
                assert worker.sequences_used < worker.sequences, "is full"
                worker.paused.discard(action.request)
            case CancelDispatched():
                client = self.open[action.request]
                assert client.instance == action.instance
                client.cancels += 1
                assert client.cancels == 1, "was cancelled already"
                if not self.workers[action.instance].dead:
                    self._later(LeaseReturned(action.cause, action.request, action.instance), 0.5)
            case Reject():
                client = self.lost.pop(action.request, None) or self.open.pop(action.request)
                assert action.request not in self.open
                assert action.retry_after is None or action.retry_after > 0
                assert (
                    client.instance is None
                    or client.instance not in self.workers
                    or client.arrival.request not in (self.workers[client.instance].running)
                ), "runs still"
                self.ended[action.request] += 1
            case Accept():
                client = self.open.pop(action.request)
                assert client.arrival.load_only
                assert self.workers[action.instance].sequences is not None, "is not ready"
                self.ended[action.request] += 1
            case Tell():
                assert self.open[action.request].instance is None, "does not wait"
            case SetThreads():
                worker = self.workers[action.instance]
                assert worker.threads != action.threads, "has as many"
                worker.threads = action.threads

    def _load_ends(self, action: Load) -> None:
        worker = self.workers[action.instance]
        if self._fails():
            worker.dead = True
            self._later(InstanceGone(action.cause, action.instance, Reason(self.random.choice(BAD_LOADS), {}, "words")))
            return
        lie = self.random.choice([0.5, 1.0, 1.0, 1.0, 2.0, 40.0])
        measured = int(action.need.bytes_estimated * lie)
        sequences = self.random.choice([action.need.sequences, action.need.sequences, 0, 4])
        self._later(InstanceReady(action.cause, action.instance, measured, sequences, action.need.context))

    def _dispatch_ends(self, action: Dispatch, worker: Worker) -> None:
        if worker.dead:
            # Its exit is on the way to the core, and ends this request if nothing else does.
            if self.random.random() < 0.5:
                reason = Reason(Why.WORKER_DIED, {}, "words")
                self._later(LeaseReturned(action.cause, action.request, action.instance, lost=reason), 0.1)
            return
        if self._fails():
            if self.random.random() < 0.5:
                self._die(action.instance)
                return
            reason = Reason(self.random.choice([Why.TIMED_OUT, Why.FAILED_INSIDE]), {}, "words")
            self._later(LeaseReturned(action.cause, action.request, action.instance, lost=reason))
            return
        self._later(LeaseReturned(action.cause, action.request, action.instance))

    # What must hold at every point of a list of actions.

    def _check_threads(self) -> None:
        for device in self.core.state.devices.values():
            busy = [worker for worker in self.workers.values() if worker.need.device == device.id and worker.is_busy]
            granted = sum(worker.threads for worker in busy)
            assert granted <= max(device.cores, len(busy)), "more threads than cores"

    def check_the_end(self) -> None:
        """Every request that came has ended once, and nothing is left of it."""
        assert self.open == {}
        assert self.ended == {RequestId(f"r{number + 1}"): 1 for number in range(self.made)}
        assert self.core.state.requests == {}
        assert all(instance.leases == instance.paused == set() for instance in self.core.state.instances.values())
        assert set(self.core.state.instances) == set(self.workers)
