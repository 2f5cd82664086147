"""Cancels and deadlines, at every point of a request's way."""

from __future__ import annotations

import math
from dataclasses import replace

from core_driver import Core, match

from enclaved.core.events import CancelDispatched, Dispatch, Reject
from enclaved.core.reasons import Why
from enclaved.core.state import Phase


def test_a_waiting_request_ends_at_once(core: Core) -> None:
    core.request("r1")
    assert core.kinds(core.cancel("r1")) == ["Reject"]
    assert core.state.requests == {}


def test_a_running_request_ends_when_its_lease_returns(core: Core) -> None:
    core.load()
    core.request("r1")
    [cancelled] = match(core.cancel("r1"), CancelDispatched, request="r1", reason__why=Why.CANCELLED)
    assert cancelled.instance == core.instance().id
    assert core.instance().leases == {"r1"}
    assert core.kinds(core.returned("r1")) == []
    assert core.state.requests == {}


def test_a_sequence_of_a_cancelled_request_is_not_given_out_before_it_returns(core: Core) -> None:
    core.load()
    core.request("r1")
    core.request("r2")
    assert match(core.cancel("r1"), Dispatch) == []
    assert match(core.returned("r1"), Dispatch, request="r2")


def test_a_second_cancel_asks_for_nothing(core: Core) -> None:
    core.load()
    core.request("r1")
    core.cancel("r1")
    assert core.cancel("r1") == ()


def test_a_cancel_after_the_end_asks_for_nothing(core: Core) -> None:
    core.load()
    core.request("r1")
    core.returned("r1")
    assert core.cancel("r1") == ()
    assert core.cancel("never-seen") == ()


def test_a_load_goes_on_when_everyone_who_waited_has_cancelled(core: Core) -> None:
    core.request("r1")
    core.cancel("r1")
    core.ready()
    assert core.kinds(core.request("r2")) == ["Dispatch"]


def test_a_load_that_was_asked_for_by_itself_ends_with_the_asking(core: Core) -> None:
    core.request("r1", load_only=True)
    assert core.kinds(core.cancel("r1")) == ["Reject", "Unload"]
    core.gone()
    assert core.state.instances == {}
    assert "Load" in core.kinds(core.request("r2"))


def test_a_load_goes_on_when_somebody_else_waits_for_it(core: Core) -> None:
    core.request("r1", load_only=True)
    core.request("r2")
    core.cancel("r1")
    core.ready()
    assert core.instance().leases == {"r2"}


def test_a_model_that_is_loaded_already_stays_when_a_load_is_cancelled(core: Core) -> None:
    core.load()
    core.request("r1")
    core.request("r2", load_only=True, need=replace(core.instance().need, context=9000))
    core.cancel("r2")
    assert core.instance().phase is Phase.READY


def test_a_load_that_fails_after_everyone_cancelled_ends_nothing_twice(core: Core) -> None:
    core.request("r1")
    core.cancel("r1")
    assert core.gone(why=Why.LOAD_FAILED) == ()


def test_a_worker_that_dies_while_its_request_is_cancelled_ends_it_once_as_cancelled(core: Core) -> None:
    core.load()
    core.request("r1")
    core.cancel("r1")
    [reject] = match(core.gone(why=Why.WORKER_DIED), Reject)
    assert (reject.request, reject.reason.why) == ("r1", Why.CANCELLED)


def test_a_waiting_request_ends_at_its_deadline(core: Core) -> None:
    core.request("r1", deadline_at=10.0)
    assert core.wake_at == 10.0
    [reject] = match(core.wake(10.0), Reject, request="r1", reason__why=Why.DEADLINE)
    assert reject.reason.numbers == {"waited_seconds": 9.0}
    assert core.wake_at is None


def test_a_deadline_at_the_end_of_time_is_not_woken_for(core: Core) -> None:
    core.request("r1", deadline_at=math.inf)
    assert core.wake_at is None


def test_being_woken_too_early_ends_nothing_and_asks_again(core: Core) -> None:
    core.request("r1", deadline_at=10.0)
    assert core.wake(9.5) == ()
    assert core.wake_at == 10.0


def test_the_earliest_deadline_is_the_one_to_be_woken_at(core: Core) -> None:
    core.request("r1", deadline_at=30.0)
    core.request("r2", deadline_at=20.0)
    core.request("r3")
    assert core.wake_at == 20.0
    core.cancel("r2")
    assert core.wake_at == 30.0


def test_a_request_is_not_dispatched_at_its_deadline(core: Core) -> None:
    core.request("r1", deadline_at=2.0)
    actions = core.ready()
    assert core.now == 2.0
    assert core.kinds(actions) == ["Reject"]


def test_a_running_request_is_made_to_end_at_its_deadline(core: Core) -> None:
    core.load()
    core.request("r1", deadline_at=100.0)
    assert core.wake_at == 100.0
    [cancel] = match(core.wake(100.0), CancelDispatched)
    assert cancel.reason.why is Why.DEADLINE
    assert core.wake_at is None
    assert core.wake(200.0) == ()
