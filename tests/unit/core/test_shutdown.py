"""The daemon's end, in each phase of what it has."""

from __future__ import annotations

from core_driver import Core, match

from enclaved.core.events import CancelDispatched, InstanceReady, Reject, Unload
from enclaved.core.reasons import Why


def test_waiting_requests_are_told_and_running_ones_cut_short(core: Core) -> None:
    core.load()
    core.request("r1")
    core.request("r2")
    actions = core.shut_down()
    assert match(actions, CancelDispatched, request="r1", reason__why=Why.SHUTTING_DOWN)
    assert match(actions, Reject, request="r2", reason__why=Why.SHUTTING_DOWN)
    assert match(actions, Unload) == []


def test_an_instance_ends_when_its_last_lease_has_returned(core: Core) -> None:
    core.load(sequences=2)
    core.request("r1")
    core.request("r2")
    core.shut_down()
    assert core.kinds(core.returned("r1")) == []
    assert core.kinds(core.returned("r2")) == ["Unload"]
    assert core.gone() == ()
    assert (core.state.instances, core.state.requests) == ({}, {})


def test_an_idle_instance_ends_at_once(core: Core) -> None:
    core.load()
    assert core.kinds(core.shut_down()) == ["Unload"]


def test_a_load_is_ended(core: Core) -> None:
    core.request("r1")
    assert core.kinds(core.shut_down()) == ["Reject", "Unload"]
    instance = core.instance()
    assert core.feed(InstanceReady("late", instance.id, 4, 1, 4096)) == ()
    assert core.gone(why=Why.UNLOADED) == ()


def test_an_unload_under_way_is_not_asked_for_again(core: Core) -> None:
    core.load()
    core.unload()
    assert core.shut_down() == ()


def test_a_second_shutdown_asks_for_nothing(core: Core) -> None:
    core.load()
    core.request("r1")
    core.shut_down()
    assert core.shut_down() == ()


def test_a_request_that_was_being_cancelled_is_not_cancelled_again(core: Core) -> None:
    core.load()
    core.request("r1")
    core.cancel("r1")
    assert match(core.shut_down(), CancelDispatched) == []


def test_new_requests_are_refused(core: Core) -> None:
    core.shut_down()
    assert match(core.request("r1"), Reject, request="r1", reason__why=Why.SHUTTING_DOWN)


def test_a_worker_that_dies_meanwhile_is_not_replaced_and_its_request_ends_with_the_daemon(core: Core) -> None:
    core.load()
    core.request("r1")
    core.shut_down()
    actions = core.gone(why=Why.WORKER_DIED)
    assert core.kinds(actions) == ["Reject"]
    assert match(actions, Reject, request="r1", reason__why=Why.SHUTTING_DOWN)


def test_a_victim_is_not_reprieved(core: Core) -> None:
    core.load("a", 6)
    core.request("r1", "a", 6)
    core.request("r2", "b", 6)
    core.shut_down()
    assert core.kinds(core.returned("r1")) == ["Unload"]


def test_a_worker_that_had_to_be_ended_is_not_what_its_client_is_told_of(core: Core) -> None:
    core.load(sequences=2)
    core.request("r1")
    core.request("r2")
    core.shut_down()
    assert match(core.returned("r1", lost=Why.WORKER_DIED), Reject, request="r1", reason__why=Why.SHUTTING_DOWN)
    assert match(core.gone(why=Why.WORKER_DIED), Reject, request="r2", reason__why=Why.SHUTTING_DOWN)
