"""Who is handed to which instance, and what becomes of the lease."""

from __future__ import annotations

from core_driver import Core, match

from enclaved.core.events import Action, Dispatch, LeaseReturned, Reject, Tell, Unload
from enclaved.core.ids import InstanceId, RequestId
from enclaved.core.reasons import Reason, Why


def _dispatched(actions: tuple[Action, ...]) -> list[str]:
    return [dispatch.request for dispatch in match(actions, Dispatch)]


def test_waiting_requests_fill_the_sequences_of_an_instance_in_order_of_arrival(core: Core) -> None:
    for request in ("r1", "r2", "r3"):
        core.request(request)
    assert _dispatched(core.ready(sequences=2)) == ["r1", "r2"]
    assert _dispatched(core.returned("r2")) == ["r3"]


def test_interactive_goes_before_normal_before_background(core: Core) -> None:
    core.request("r1", priority="background")
    core.request("r2", priority="normal")
    core.request("r3", priority="interactive")
    core.request("r4", priority="normal")
    order = _dispatched(core.ready())
    while core.state.waiting():
        order += _dispatched(core.returned(order[-1]))
    assert order == ["r3", "r2", "r4", "r1"]


def test_a_request_for_a_ready_instance_with_a_free_sequence_is_dispatched_at_once(core: Core) -> None:
    core.load(sequences=2)
    assert core.kinds(core.request("r1")) == ["Dispatch"]
    assert core.kinds(core.request("r2")) == ["Dispatch"]
    assert core.kinds(core.request("r3")) == []


def test_who_waits_is_told_its_place_and_told_again_only_when_it_changes(core: Core) -> None:
    core.load()
    core.request("r1")
    assert match(core.request("r2"), Tell, request="r2", position=0, why="busy")
    assert match(core.request("r3"), Tell, request="r3", position=1, why="busy")
    assert match(core.request("r4", "b"), Tell, request="r3") == []
    assert match(core.returned("r1"), Tell, request="r3", position=0)


def test_a_request_that_arrives_twice_runs_once(core: Core) -> None:
    core.request("r1")
    assert core.request("r1") == ()
    assert _dispatched(core.ready(sequences=4)) == ["r1"]
    assert core.request("r1") == ()
    assert core.instance().leases == {"r1"}


def test_a_second_arrival_of_a_running_request_is_not_refused(core: Core) -> None:
    core.load()
    core.request("r1")
    assert core.request("r1", size=1000) == ()


def test_a_lease_that_returns_twice_frees_one_sequence(core: Core) -> None:
    core.load(sequences=1)
    core.request("r1")
    instance = core.instance().id
    core.request("r2")
    core.request("r3")
    event = LeaseReturned("end", RequestId("r1"), instance)
    assert _dispatched(core.feed(event)) == ["r2"]
    assert core.feed(event) == ()


def test_a_lease_that_returns_from_elsewhere_changes_nothing(core: Core) -> None:
    core.load()
    core.request("r1")
    assert core.feed(LeaseReturned("end", RequestId("r1"), InstanceId("i99"))) == ()
    assert core.feed(LeaseReturned("end", RequestId("r99"), core.instance().id)) == ()
    assert core.instance().leases == {"r1"}


def test_a_lost_lease_ends_its_request_with_the_reason(core: Core) -> None:
    core.load()
    core.request("r1")
    assert match(core.returned("r1", Why.WORKER_DIED), Reject, request="r1", reason__why=Why.WORKER_DIED)


def test_nobody_is_sent_to_an_instance_that_lost_a_lease(core: Core) -> None:
    core.load()
    for request in ("r1", "r2", "r3"):
        core.request(request)
    actions = core.returned("r1", Why.WORKER_DIED)
    assert _dispatched(actions) == []
    assert match(actions, Unload, instance=core.instance().id, cause="end-r1")
    assert core.kinds(core.gone(why=Why.WORKER_DIED)) == ["Load"]
    assert _dispatched(core.ready()) == ["r2"]


def test_an_error_of_our_own_costs_its_request_and_not_the_instance(core: Core) -> None:
    core.load()
    core.request("r1")
    core.request("r2")
    actions = core.returned("r1", Why.FAILED_INSIDE)
    assert match(actions, Reject, request="r1", reason__why=Why.FAILED_INSIDE)
    assert _dispatched(actions) == ["r2"]


def test_a_worker_that_dies_ends_its_running_requests_and_not_the_waiting_ones(core: Core) -> None:
    for request in ("r1", "r2", "r3"):
        core.request(request)
    core.ready(sequences=2)
    actions = core.gone(why=Why.WORKER_DIED)
    assert [reject.request for reject in match(actions, Reject)] == ["r1", "r2"]
    assert core.kinds(actions) == ["Reject", "Reject", "Load"]
    assert _dispatched(core.ready()) == ["r3"]


def test_a_lease_that_returns_after_its_worker_has_gone_ends_nothing_twice(core: Core) -> None:
    core.load()
    core.request("r1")
    instance = core.instance().id
    core.gone(why=Why.WORKER_DIED)
    late = LeaseReturned("late", RequestId("r1"), instance, lost=Reason(Why.WORKER_DIED))
    assert core.feed(late) == ()


def test_a_lease_lost_after_a_cancel_ends_as_cancelled(core: Core) -> None:
    core.load()
    core.request("r1")
    core.cancel("r1")
    assert match(core.returned("r1", Why.WORKER_DIED), Reject, request="r1", reason__why=Why.CANCELLED)
