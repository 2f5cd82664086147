"""Who may wait at all."""

from __future__ import annotations

import math

import pytest
from core_driver import Core, a_need, match
from hypothesis import given
from hypothesis import strategies as st

from enclaved.core.events import Load, Reject
from enclaved.core.reasons import Why
from enclaved.core.state import Limits


def test_a_model_larger_than_its_device_is_refused_with_the_figures(core: Core) -> None:
    [reject] = match(core.request("r1", size=11), Reject, cause="cause-r1")
    assert reject.reason.why is Why.TOO_LARGE_FOR_MEMORY
    assert reject.reason.numbers == {"needed_bytes": 11, "limit_bytes": 10, "context": 4096}
    assert core.state.requests == {}


@given(size=st.integers(0, 40), memory=st.integers(0, 30), more=st.integers(0, 10))
def test_more_memory_never_refuses_what_less_memory_takes(size: int, memory: int, more: int) -> None:
    little, much = Core(memory=memory), Core(memory=memory + more)
    if match(little.request("r1", size=size), Load):
        assert match(much.request("r1", size=size), Load)


def test_a_device_that_is_not_there_is_refused_by_name(core: Core) -> None:
    [reject] = match(core.request("r1", need=a_need(device="gpu7")), Reject)
    assert (reject.reason.why, reject.reason.numbers) == (Why.FAILED_INSIDE, {"device": "gpu7"})


@pytest.mark.parametrize("deadline_at", [0.5, 1.0, -math.inf, math.nan])
def test_a_deadline_that_has_passed_or_is_no_time_is_refused(core: Core, deadline_at: float) -> None:
    [reject] = match(core.request("r1", deadline_at=deadline_at), Reject)
    assert reject.reason.why is Why.DEADLINE
    assert core.wake_at is None


def test_a_client_with_a_full_queue_is_refused_and_told_when_to_come_back() -> None:
    core = Core(limits=Limits(queued_per_client_max=2))
    for number in range(2):
        core.request(f"r{number}")
    [reject] = match(core.request("r2"), Reject, reason__why=Why.QUEUE_FULL)
    assert reject.reason.numbers == {"queued": 2}
    assert reject.retry_after is not None
    assert reject.retry_after > 0
    assert match(core.request("r3", client="other"), Reject) == []


def test_a_full_daemon_refuses_every_client() -> None:
    core = Core(limits=Limits(queued_max=2))
    core.request("r0", client="one")
    core.request("r1", client="two")
    assert match(core.request("r2", client="three"), Reject, reason__why=Why.QUEUE_FULL)


def test_running_requests_do_not_count_as_queued() -> None:
    core = Core(limits=Limits(queued_per_client_max=1))
    core.load(sequences=2)
    core.request("r0")
    core.request("r1")
    assert core.kinds(core.request("r2")) == []
    assert match(core.request("r3"), Reject, reason__why=Why.QUEUE_FULL)


def test_a_request_that_was_refused_leaves_no_trace(core: Core) -> None:
    core.request("r1", size=11)
    assert match(core.request("r1", size=4), Load)
