"""Whether a request that arrives may wait at all."""

from __future__ import annotations

from enclaved.core.events import RequestArrived
from enclaved.core.reasons import Reason, Why
from enclaved.core.state import State

RETRY_AFTER_SECONDS = 5.0
"""When to come back to a full queue: about what a short answer takes."""


def refusal(state: State, event: RequestArrived, now: float) -> tuple[Reason, float | None] | None:
    """Why the request is refused at once and in how many seconds it may try again; None when it may wait.

    1. The daemon is ending.
    2. Its deadline has passed, or is no time at all.
    3. The model can never fit on its device, or was planned for a device that is not there.
    4. Its worker keeps dying: the model rests for a while.
    5. Its client's queue, or the whole queue, is full.
    """
    if state.shutting_down:
        return Reason(Why.SHUTTING_DOWN), None
    if event.deadline_at is not None and not event.deadline_at > now:  # true for a NaN too, which nothing ever reaches
        return Reason(Why.DEADLINE, {"waited_seconds": 0.0}), None
    device = state.devices.get(event.need.device)
    if device is None:
        return Reason(Why.FAILED_INSIDE, {"device": event.need.device}), None
    capacity = device.capacity_bytes
    if event.need.bytes_estimated > capacity:
        return Reason(
            Why.TOO_LARGE_FOR_MEMORY,
            {"needed_bytes": event.need.bytes_estimated, "limit_bytes": capacity, "context": event.need.context},
        ), None
    deaths = state.deaths.get(event.need.model)
    if deaths is not None and deaths.until > now:
        last = state.last_reasons.get(event.need.model)
        wait = deaths.until - now
        return Reason(Why.BACKING_OFF, {"deaths": deaths.count}, last.detail if last else ""), wait
    waiting = state.waiting()
    if len(waiting) >= state.limits.queued_max:
        return Reason(Why.QUEUE_FULL, {"queued": len(waiting)}), RETRY_AFTER_SECONDS
    own = sum(1 for request in waiting if request.client == event.client)
    if own >= state.limits.queued_per_client_max:
        return Reason(Why.QUEUE_FULL, {"queued": own}), RETRY_AFTER_SECONDS
    return None
