"""The core's one entry: an event goes in, actions and the time to be woken come out.

First the event is booked (`_book`), then `_settle` closes every gap between what is and what is wanted, in a fixed
order. Both only change `state`; the conductor carries the actions out and brings back their ends as events.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from enclaved.core import cores, eviction, memory
from enclaved.core.admission import refusal
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
    Woken,
)
from enclaved.core.fairness import in_order
from enclaved.core.ids import DeviceId, InstanceId, ModelKey
from enclaved.core.placement import suits
from enclaved.core.reasons import Reason, Why
from enclaved.core.state import Deaths, Instance, Phase, Request, State, Wanted

_UNCLEAN = {Why.WORKER_DIED, Why.DIED_LOADING, Why.TIMED_OUT}
"""Ends that count as a death: the same will probably happen again at once."""


@dataclass(frozen=True)
class Decision:
    """What is to be done, and when the core wants to be woken if nothing happens before."""

    actions: tuple[Action, ...]
    wake_at: float | None


def step(state: State, event: Event, now: float) -> Decision:
    """Books `event` in `state` and returns what follows from it. `now` is in seconds and never runs backwards.

    Events that come late or twice, about things that have ended or were replaced, change nothing.
    """
    actions = _book(state, event, now)
    actions += _settle(state, event.cause, now)
    deadlines = [r.deadline_at for r in state.requests.values() if r.deadline_at is not None and not r.being_cancelled]
    return Decision(tuple(actions), min(deadlines, default=None))


def _book(state: State, event: Event, now: float) -> list[Action]:
    match event:
        case RequestArrived():
            return _request_arrived(state, event, now)
        case RequestCancelled():
            return _request_cancelled(state, event)
        case LeasePaused() | LeaseResumed():
            return _lease_stirred(state, event)
        case LeaseReturned():
            return _lease_returned(state, event, now)
        case InstanceReady():
            return _instance_ready(state, event, now)
        case InstanceGone():
            return _instance_gone(state, event, now)
        case UnloadAsked():
            return _unload_asked(state, event)
        case ShutdownAsked():
            return _shutdown_asked(state, event)
        case Woken():
            return []


def _request_arrived(state: State, event: RequestArrived, now: float) -> list[Action]:
    if event.request in state.requests:
        return []
    refused = refusal(state, event, now)
    if refused is not None:
        reason, retry_after = refused
        return [Reject(event.cause, event.request, reason, retry_after)]
    state.requests[event.request] = Request(
        id=event.request,
        client=event.client,
        need=event.need,
        wish=event.wish,
        priority=event.priority,
        arrived_at=now,
        cause=event.cause,
        deadline_at=None if event.deadline_at == math.inf else event.deadline_at,
        load_only=event.load_only,
    )
    return []


def _request_cancelled(state: State, event: RequestCancelled) -> list[Action]:
    request = state.requests.get(event.request)
    if request is None or request.being_cancelled:
        return []
    reason = Reason(Why.CANCELLED)
    if request.instance is None:
        del state.requests[request.id]
        if request.load_only:
            _end_load(state, event.cause, request.model)
        return [Reject(event.cause, request.id, reason)]
    request.cancelled_for = reason
    return [CancelDispatched(event.cause, request.id, request.instance, reason)]


def _end_load(state: State, cause: str, model: ModelKey) -> None:
    """Who asked for nothing but a load has taken that back: it ends, unless somebody else waits for the model. The load
    for another request goes on without it: whoever types on asks again in a moment."""
    instance = state.instance_of(model)
    if instance is not None and instance.phase is Phase.LOADING and not state.is_waited_for(model):
        instance.leave(cause)


def _lease_stirred(state: State, event: LeasePaused | LeaseResumed) -> list[Action]:
    request, instance = state.requests.get(event.request), state.instances.get(event.instance)
    if request is None or instance is None or request.instance != event.instance:
        return []
    if isinstance(event, LeaseResumed):
        request.wants_resume = request.id in instance.paused
        return []
    request.wants_resume = False
    if request.id in instance.paused:
        return []
    instance.paused.add(request.id)
    return [Pause(event.cause, request.id, instance.id)]


def _lease_returned(state: State, event: LeaseReturned, now: float) -> list[Action]:
    request = state.requests.get(event.request)
    if request is None or request.instance != event.instance:
        return []
    del state.requests[request.id]
    instance = state.instances.get(event.instance)
    if instance is not None:
        instance.leases.discard(request.id)
        instance.paused.discard(request.id)
        instance.used_at = now
    if event.lost is not None:
        if instance is not None and event.lost.why in _UNCLEAN:
            # Known before the process's exit is: whoever went there until then would be lost as well.
            instance.failed = event.lost
            instance.leave(event.cause)
        return [Reject(event.cause, request.id, request.cancelled_for or event.lost)]
    if not request.being_cancelled:
        state.deaths.pop(request.model, None)
        state.last_reasons.pop(request.model, None)
    return []


def _instance_ready(state: State, event: InstanceReady, now: float) -> list[Action]:
    instance = state.instances.get(event.instance)
    if instance is None or instance.phase is not Phase.LOADING:
        return []
    instance.phase = Phase.READY
    instance.bytes_measured = event.bytes_measured
    instance.sequences = max(1, event.sequences)
    instance.context = event.context
    instance.used_at = now
    capacity = state.devices[instance.need.device].capacity_bytes
    if event.bytes_measured <= capacity:
        return []
    instance.leave(event.cause)
    numbers = {"needed_bytes": event.bytes_measured, "limit_bytes": capacity, "context": instance.need.context}
    return _end_waiting(state, instance.need.model, event.cause, Reason(Why.TOOK_TOO_MUCH, numbers))


def _instance_gone(state: State, event: InstanceGone, now: float) -> list[Action]:
    instance = state.instances.pop(event.instance, None)
    if instance is None:
        return []
    actions: list[Action] = []
    for request_id in sorted(instance.leases):
        request = state.requests.pop(request_id)
        actions.append(Reject(event.cause, request_id, request.cancelled_for or event.reason))
    model = instance.need.model
    reason = instance.failed or event.reason
    # A worker that fails while it is being ended has done its work: that says nothing about the next one.
    died = instance.failed is not None or (event.reason.why in _UNCLEAN and instance.phase is not Phase.UNLOADING)
    rest_seconds = _count_death(state, model, reason, now) if died else 0.0
    if instance.phase is Phase.LOADING or rest_seconds > 0:
        # Whoever waited for this load shares its end.
        actions += _end_waiting(state, model, event.cause, reason, rest_seconds or None)
    return actions


def _count_death(state: State, model: ModelKey, reason: Reason, now: float) -> float:
    """Notes that the model's worker died; returns the seconds that the model rests for."""
    limits = state.limits
    known = state.deaths.get(model)
    count = (known.count if known else 0) + 1
    over = count - limits.deaths_before_back_off
    # The exponent is bounded because a float is: a model may go on dying for years.
    rest_seconds = 0.0 if over < 0 else min(limits.back_off_seconds * 2.0 ** min(over, 64), limits.back_off_seconds_max)
    state.deaths[model] = Deaths(count, now + rest_seconds)
    state.last_reasons[model] = reason
    return rest_seconds


def _end_waiting(
    state: State, model: ModelKey, cause: str, reason: Reason, retry_after: float | None = None
) -> list[Action]:
    actions: list[Action] = []
    for request in [r for r in state.waiting() if r.model == model]:
        del state.requests[request.id]
        actions.append(Reject(cause, request.id, reason, retry_after))
    return actions


def _unload_asked(state: State, event: UnloadAsked) -> list[Action]:
    instance = state.instance_of(event.model)
    if instance is not None and instance.phase is not Phase.UNLOADING:
        instance.leave(event.cause)
    # Else they would start the same load again at once, and nobody could ever end one. Whoever comes later may.
    return _end_waiting(state, event.model, event.cause, Reason(Why.UNLOADED))


def _shutdown_asked(state: State, event: ShutdownAsked) -> list[Action]:
    state.shutting_down = True
    reason = Reason(Why.SHUTTING_DOWN)
    actions: list[Action] = []
    for request in list(state.requests.values()):
        if request.instance is None:
            del state.requests[request.id]
            actions.append(Reject(event.cause, request.id, reason))
        elif not request.being_cancelled:
            request.cancelled_for = reason
            actions.append(CancelDispatched(event.cause, request.id, request.instance, reason))
    for instance in state.instances.values():
        instance.leave(event.cause)
    return actions


def _settle(state: State, cause: str, now: float) -> list[Action]:
    """Closes every gap, in this order:

    1. requests whose deadline has passed end, or are made to;
    2. waiting requests go to ready instances with a free sequence, and paused ones go on there;
    3. models that are waited for and not there are loaded, room being made where needed;
    4. instances that make way for a request which no longer needs it stay after all, and it goes on at 2;
    5. instances that are to go and hold no lease are unloaded;
    6. compute threads follow who is busy;
    7. whoever still waits is told why, where that changed.

    Threads are taken before anyone starts to work and given afterwards: at no point of the list are there too many.
    """
    expired = _expire(state, now)
    dispatched: list[Action] = []
    loading: list[Instance] = []
    while True:
        dispatched += _dispatch(state, now)
        loading += _load(state, now)
        if not _reprieve(state):
            break
    unloads = _unload(state)
    taken, given = _grant_cores(state, cause, loading)
    loads = [Load(instance.cause, instance.id, instance.need, instance.threads) for instance in loading]
    return [*expired, *taken, *unloads, *dispatched, *loads, *given, *_tell(state)]


def _expire(state: State, now: float) -> list[Action]:
    actions: list[Action] = []
    for request in list(state.requests.values()):
        if request.deadline_at is None or request.deadline_at > now or request.being_cancelled:
            continue
        reason = Reason(Why.DEADLINE, {"waited_seconds": now - request.arrived_at})
        if request.instance is None:
            del state.requests[request.id]
            actions.append(Reject(request.cause, request.id, reason))
        else:
            request.cancelled_for = reason
            actions.append(CancelDispatched(request.cause, request.id, request.instance, reason))
    return actions


def _reprieve(state: State) -> bool:
    """Lets instances stay that make way for nobody any more: the request was cancelled, or found its room elsewhere."""
    found = False
    for instance in state.instances.values():
        if instance.makes_way_for is None or instance.phase is Phase.UNLOADING:
            continue
        if instance.makes_way_for == instance.need.model:
            waiting = [r for r in state.waiting() if r.model == instance.need.model]
            needed = any(not suits(instance.need, r.need, r.wish) for r in waiting)
        else:
            needed = state.is_waited_for(instance.makes_way_for) and state.instance_of(instance.makes_way_for) is None
        if not needed:
            instance.wanted = Wanted.LOADED
            instance.makes_way_for = None
            found = True
    return found


def _dispatch(state: State, now: float) -> list[Action]:
    actions: list[Action] = []
    for request in in_order(r for r in state.requests.values() if r.instance is None or r.wants_resume):
        instance = state.instance_of(request.model)
        if instance is not None and request.wants_resume:
            if instance.sequences_used < instance.sequences:
                request.wants_resume = False
                instance.paused.discard(request.id)
                actions.append(Resume(request.cause, request.id, instance.id))
            continue
        if instance is None or not instance.takes_requests or not suits(instance.need, request.need, request.wish):
            continue
        if request.load_only:
            del state.requests[request.id]
            if request.wish.threads is not None:
                instance.need = replace(instance.need, threads_max=request.need.threads_max)
                if not instance.is_busy:
                    instance.threads = cores.grants(
                        {instance.id: instance.need.threads_max}, state.devices[instance.need.device].cores
                    )[instance.id]
                    actions.append(SetThreads(request.cause, instance.id, instance.threads))
            actions.append(Accept(request.cause, request.id, instance.id))
        elif instance.sequences_used < instance.sequences:
            request.instance = instance.id
            instance.leases.add(request.id)
            instance.used_at = now
            actions.append(Dispatch(request.cause, request.id, instance.id))
    return actions


def _load(state: State, now: float) -> list[Instance]:
    """Looks at each model that is waited for, in the order of its first waiting request, and returns what it started.

    a. An instance is there that does not suit the request: it is to go, and is replaced once it has gone.
    b. An instance is on its way out: wait for it, and keep what is free for its successor.
    c. An instance is there (loading or busy): wait for it.
    d. What is free, less what earlier ones in this order have claimed, suffices: load.
    e. What is leaving already will suffice: wait for it.
    f. Choose victims and let them go; the load follows when they have. Never one that an earlier request in this order
       waits for: it would be loaded again before this one.
    """
    started: list[Instance] = []
    claimed: dict[DeviceId, int] = {}
    seen: set[ModelKey] = set()
    for request in in_order(state.waiting()):
        if request.model in seen:
            continue
        seen.add(request.model)
        device = request.need.device
        needed = request.need.bytes_estimated
        instance = state.instance_of(request.model)
        if instance is not None:
            if instance.takes_requests and not suits(instance.need, request.need, request.wish):
                instance.leave(request.cause, makes_way_for=request.model)
            if instance.wanted is Wanted.UNLOADED:
                claimed[device] = claimed.get(device, 0) + needed
            continue
        free = memory.free_bytes(state, device) - claimed.get(device, 0)
        if needed <= free:
            started.append(_start(state, request, now))
            continue
        claimed[device] = claimed.get(device, 0) + needed
        missing = needed - free - memory.leaving_bytes(state, device)
        candidates = [
            i
            for i in state.instances.values()
            if i.need.device == device and i.need.model not in seen and _can_make_way(state, i)
        ]
        for victim in eviction.victims(candidates, missing) or []:
            victim.leave(request.cause, makes_way_for=request.model)
    return started


def _can_make_way(state: State, instance: Instance) -> bool:
    """Whoever is to stay, but for a load that is still waited for."""
    if instance.wanted is Wanted.UNLOADED:
        return False
    return instance.phase is Phase.READY or not state.is_waited_for(instance.need.model)


def _start(state: State, request: Request, now: float) -> Instance:
    state.instances_made += 1
    instance = Instance(id=InstanceId(f"i{state.instances_made}"), need=request.need, cause=request.cause, used_at=now)
    state.instances[instance.id] = instance
    return instance


def _unload(state: State) -> list[Action]:
    actions: list[Action] = []
    for instance in state.instances.values():
        if instance.wanted is Wanted.UNLOADED and instance.phase is not Phase.UNLOADING and not instance.leases:
            instance.phase = Phase.UNLOADING
            actions.append(Unload(instance.cause, instance.id))
    return actions


def _grant_cores(state: State, cause: str, loading: list[Instance]) -> tuple[list[Action], list[Action]]:
    """Who loses threads and who wins some; those in `loading` get theirs with their `Load`."""
    new = {instance.id for instance in loading}
    taken: list[Action] = []
    given: list[Action] = []
    for device in state.devices.values():
        busy = [i for i in state.instances.values() if i.is_busy and i.need.device == device.id]
        most = {instance.id: instance.need.threads_max for instance in busy}
        for instance_id, threads in cores.grants(most, device.cores).items():
            instance = state.instances[instance_id]
            before, instance.threads = instance.threads, threads
            if before != threads and instance_id not in new:
                (taken if threads < before else given).append(SetThreads(cause, instance_id, threads))
    return taken, given


def _tell(state: State) -> list[Action]:
    actions: list[Action] = []
    ahead: dict[ModelKey, int] = {}
    for request in in_order(state.waiting()):
        position = ahead.get(request.model, 0)
        ahead[request.model] = position + 1
        instance = state.instance_of(request.model)
        if instance is not None and instance.phase is Phase.LOADING:
            told = Tell(request.cause, request.id, "loading", position, "loading")
        elif instance is not None and instance.takes_requests:
            told = Tell(request.cause, request.id, "queued", position, "busy")
        else:
            told = Tell(request.cause, request.id, "queued", position, "memory")
        if told != request.told:
            request.told = told
            actions.append(told)
    return actions
