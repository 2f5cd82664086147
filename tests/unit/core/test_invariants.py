"""The check finds what is wrong: each rule, broken by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from core_driver import Core, a_need

from enclaved.core import invariants
from enclaved.core.ids import InstanceId, ModelKey, RequestId
from enclaved.core.reasons import Reason, Why
from enclaved.core.state import Instance, Limits, Phase, State, Wanted


def _state() -> State:
    """Model a runs r1 and has r2 waiting, b loads for r3, c waits for room."""
    core = Core(memory=10, cores=4)
    core.load("a", 4)
    core.request("r1", "a", 4)
    core.request("r2", "a", 4)
    core.request("r3", "b", 4)
    core.request("r4", "c", 3)
    return core.state


def _a(state: State) -> Instance:
    return state.instances[InstanceId("i1")]


def _b(state: State) -> Instance:
    return state.instances[InstanceId("i2")]


def _lose_instance(state: State) -> None:
    del state.instances[InstanceId("i1")]


def _lose_lease(state: State) -> None:
    _a(state).leases.clear()


def _lend_twice(state: State) -> None:
    _a(state).sequences = 2
    _a(state).leases.add(RequestId("r3"))


def _lend_beyond(state: State) -> None:
    _a(state).leases.add(RequestId("r2"))
    state.requests[RequestId("r2")].instance = InstanceId("i1")


def _pause_a_stranger(state: State) -> None:
    _a(state).paused.add(RequestId("r2"))


def _go_on_unpaused(state: State) -> None:
    state.requests[RequestId("r1")].wants_resume = True


def _keep_waiting_for_a_free_sequence(state: State) -> None:
    _a(state).paused.add(RequestId("r1"))
    state.requests[RequestId("r1")].wants_resume = True


def _lend_while_unloading(state: State) -> None:
    _a(state).leave("cause")
    _a(state).phase = Phase.UNLOADING


def _load_twice(state: State) -> None:
    state.instances[InstanceId("i9")] = Instance(InstanceId("i9"), a_need("b", 0), "cause", threads=1)


def _forget_to_unload(state: State) -> None:
    _b(state).wanted = Wanted.UNLOADED


def _unload_unasked(state: State) -> None:
    _b(state).phase = Phase.UNLOADING


def _keep_the_failed(state: State) -> None:
    _a(state).failed = Reason(Why.WORKER_DIED)


def _make_way_for_nobody(state: State) -> None:
    _a(state).leave("cause", ModelKey("z"))


def _make_way_for_the_present(state: State) -> None:
    _a(state).leave("cause", ModelKey("b"))


def _book_too_much(state: State) -> None:
    _b(state).need = replace(_b(state).need, bytes_estimated=7)


def _queue_too_many(state: State) -> None:
    state.limits = Limits(queued_max=2)


def _queue_too_many_of_one(state: State) -> None:
    state.limits = Limits(queued_per_client_max=2)


def _wait_at_the_end(state: State) -> None:
    state.shutting_down = True


def _wait_though_cancelled(state: State) -> None:
    state.requests[RequestId("r2")].cancelled_for = Reason(Why.CANCELLED)


def _leave_untold(state: State) -> None:
    state.requests[RequestId("r2")].told = None


def _leave_a_sequence_free(state: State) -> None:
    _a(state).sequences = 2


def _leave_memory_free(state: State) -> None:
    del state.requests[RequestId("r2")], state.requests[RequestId("r3")], state.instances[InstanceId("i2")]


def _nothing_under_way(state: State) -> None:
    _lose_instance(state)
    state.instances.clear()


def _too_many_threads(state: State) -> None:
    _a(state).threads += 1


def _no_thread(state: State) -> None:
    _a(state).threads = 0


def test_a_state_that_came_about_by_steps_breaks_no_rule() -> None:
    assert invariants.check(_state()) == []


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (_lose_instance, "which is not there"),
        (_lose_lease, "without a lease"),
        (_lend_twice, "which does not run there"),
        (_lend_beyond, "i1 runs 2 requests on 1 sequences"),
        (_pause_a_stranger, "i1 has r2 paused, which holds no lease"),
        (_go_on_unpaused, "r1 is to go on and is not paused"),
        (_keep_waiting_for_a_free_sequence, "r1 is to go on, and i1 has a sequence for it"),
        (_lend_while_unloading, "is unloading and holds leases"),
        (_load_twice, "b has 2 instances"),
        (_forget_to_unload, "is to go, holds no lease and is loading"),
        (_unload_unasked, "is unloading and is to stay"),
        (_keep_the_failed, "is to stay and has a reason to go"),
        (_make_way_for_nobody, "makes way for z, which nobody waits for"),
        (_make_way_for_the_present, "makes way for b, which is there"),
        (_book_too_much, "cpu has 10 bytes and 11 booked"),
        (_queue_too_many, "3 requests wait, 2 may"),
        (_queue_too_many_of_one, "3 requests of client wait, 2 may"),
        (_wait_at_the_end, "wait for a daemon that ends"),
        (_wait_though_cancelled, "waits though it was cancelled"),
        (_leave_untold, "was not told why"),
        (_leave_a_sequence_free, "r2 waits although i1 could take it"),
        (_leave_memory_free, "r4 waits although c fits into what is free"),
        (_nothing_under_way, "requests wait and nothing is under way"),
        (_too_many_threads, "4 cores and 5 threads granted"),
        (_no_thread, "i1 is busy and has no thread"),
    ],
)
def test_a_broken_rule_is_named(damage: Callable[[State], None], sentence: str) -> None:
    state = _state()
    damage(state)
    assert any(sentence in broken for broken in invariants.check(state)), invariants.check(state)
