"""A request whose client does not read keeps its lease and gives up its sequence."""

from __future__ import annotations

import pytest
from core_driver import Core, match

from enclaved.core.events import (
    CancelDispatched,
    Dispatch,
    LeasePaused,
    LeaseResumed,
    Pause,
    Resume,
    SetThreads,
    Unload,
)
from enclaved.core.ids import InstanceId, RequestId


@pytest.fixture
def busy(core: Core) -> Core:
    """r1 runs on the one sequence of a, r2 waits for it."""
    core.load(sequences=1)
    core.request("r1")
    core.request("r2")
    return core


def test_another_gets_the_sequence_of_a_paused_request(busy: Core) -> None:
    assert match(busy.pauses("r1"), Dispatch, request="r2")
    assert busy.instance().leases == {"r1", "r2"}


def test_a_worker_is_told_to_pause_before_another_gets_the_sequence(busy: Core) -> None:
    assert busy.kinds(busy.pauses("r1")) == ["Pause", "Dispatch"]
    busy.returned("r2")
    assert busy.kinds(busy.resumes("r1")) == ["Resume"]
    assert match(busy.pauses("r1"), Pause, request="r1", instance=busy.instance().id)


def test_a_resumed_request_waits_for_a_sequence_and_goes_before_whoever_came_later(busy: Core) -> None:
    busy.pauses("r1")
    busy.request("r3")
    assert busy.kinds(busy.resumes("r1")) == []
    assert busy.kinds(busy.returned("r2")) == ["Resume"]
    assert busy.kinds(busy.returned("r1")) == ["Dispatch"]


def test_a_resumed_request_with_a_free_sequence_goes_on_at_once(core: Core) -> None:
    core.load(sequences=1)
    core.request("r1")
    core.pauses("r1")
    assert match(core.resumes("r1"), Resume, request="r1", instance=core.instance().id)
    assert core.instance().paused == set()


def test_interactive_work_goes_before_a_resumed_request(core: Core) -> None:
    core.load(sequences=1)
    core.request("r1", priority="normal")
    core.request("r2", priority="normal")
    core.pauses("r1")
    core.request("r3", priority="interactive")
    core.resumes("r1")
    assert core.kinds(core.returned("r2")) == ["Dispatch"]
    assert core.kinds(core.returned("r3")) == ["Resume"]


def test_a_pause_that_comes_twice_or_too_late_changes_nothing(busy: Core) -> None:
    instance = busy.instance().id
    busy.pauses("r1")
    assert busy.pauses("r1") == ()
    busy.cancel("r1")
    busy.returned("r1")
    for event in (LeasePaused("x", RequestId("r1"), instance), LeaseResumed("x", RequestId("r1"), instance)):
        assert busy.feed(event) == ()


def test_a_resume_of_what_is_not_paused_changes_nothing(busy: Core) -> None:
    assert busy.resumes("r1") == ()
    assert busy.feed(LeaseResumed("x", RequestId("r1"), InstanceId("i99"))) == ()
    assert busy.feed(LeasePaused("x", RequestId("r2"), busy.instance().id)) == ()


def test_paused_again_before_it_could_go_on_it_waits_for_nothing(busy: Core) -> None:
    busy.pauses("r1")
    busy.resumes("r1")
    busy.pauses("r1")
    assert busy.kinds(busy.returned("r2")) == []


def test_an_instance_with_paused_requests_only_holds_no_cores_and_is_not_ended_for_room(core: Core) -> None:
    core.load("a", 6)
    core.load("b", 4)
    core.request("r1", "a", 6)
    core.request("r2", "b", 4)
    threads = core.instance("b").threads
    actions = core.pauses("r1")
    assert match(actions, SetThreads, instance=core.instance("b").id)
    assert core.instance("b").threads > threads
    core.returned("r2")
    assert match(core.request("r3", "c", 5), Unload, instance=core.instance("a").id) == []


def test_a_paused_request_can_be_cancelled_and_lost(busy: Core) -> None:
    busy.pauses("r1")
    assert match(busy.cancel("r1"), CancelDispatched, request="r1")
    busy.returned("r1")
    assert busy.instance().paused == set()


def test_an_instance_that_leaves_lets_its_paused_requests_finish(busy: Core) -> None:
    busy.pauses("r1")
    busy.unload()
    busy.returned("r2")
    assert busy.kinds(busy.resumes("r1")) == ["Resume"]
    assert busy.kinds(busy.returned("r1")) == ["Unload"]
