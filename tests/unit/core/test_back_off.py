"""A model whose worker keeps dying rests, longer each time."""

from __future__ import annotations

import pytest
from core_driver import Core, match

from enclaved.core.events import Dispatch, Load, Reject
from enclaved.core.ids import ModelKey
from enclaved.core.reasons import Why
from enclaved.core.state import Limits


def _die(core: Core, request: str) -> None:
    """Loads the model for a request, and has its worker die under it."""
    core.request(request)
    core.ready()
    core.gone(why=Why.WORKER_DIED)


def test_after_one_death_the_next_request_loads_again(core: Core) -> None:
    _die(core, "r1")
    assert match(core.request("r2"), Load)


def test_after_the_second_death_in_a_row_requests_are_refused_for_a_while(core: Core) -> None:
    _die(core, "r1")
    _die(core, "r2")
    [reject] = match(core.request("r3"), Reject, reason__why=Why.BACKING_OFF)
    assert reject.reason.numbers == {"deaths": 2}
    assert reject.reason.detail == "words"
    assert reject.retry_after == 1.0
    core.now += 1.0
    assert match(core.request("r4"), Load)


def test_each_further_death_doubles_the_rest_up_to_its_bound(core: Core) -> None:
    rests: list[float] = []
    for number in range(9):
        _die(core, f"r{number}")
        rests.append(core.state.deaths[ModelKey("a")].until - core.now)
        core.now += rests[-1]
    assert rests == [0.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]


def test_a_model_may_die_for_ever(core: Core) -> None:
    _die(core, "r1")
    core.state.deaths[ModelKey("a")].count = 10_000
    _die(core, "r2")
    assert core.state.deaths[ModelKey("a")].until - core.now == 60.0


def test_a_request_served_in_between_ends_the_row(core: Core) -> None:
    _die(core, "r1")
    core.request("r2")
    core.ready()
    core.returned("r2")
    core.gone(why=Why.WORKER_DIED)
    assert match(core.request("r3"), Load)


def test_a_request_cancelled_in_between_does_not_end_the_row(core: Core) -> None:
    _die(core, "r1")
    core.request("r2")
    core.ready()
    core.cancel("r2")
    core.returned("r2")
    core.gone(why=Why.WORKER_DIED)
    assert match(core.request("r3"), Reject, reason__why=Why.BACKING_OFF)


def test_whoever_waits_when_the_rest_begins_is_told_when_to_come_back(core: Core) -> None:
    _die(core, "r1")
    core.request("r2")
    core.request("r3")
    core.ready()
    actions = core.gone(why=Why.WORKER_DIED)
    assert [(reject.request, reject.retry_after) for reject in match(actions, Reject)] == [("r2", None), ("r3", 2.0)]
    assert core.state.requests == {}


@pytest.mark.parametrize("why", [Why.WORKER_DIED, Why.TIMED_OUT, Why.UNLOADED])
def test_a_death_that_a_lost_lease_told_of_counts_once_whatever_the_end_is_called(core: Core, why: Why) -> None:
    core.request("r1")
    core.ready()
    core.returned("r1", Why.WORKER_DIED)
    core.gone(why=why)
    assert core.state.deaths[ModelKey("a")].count == 1


def test_a_death_while_loading_counts(core: Core) -> None:
    for request in ("r1", "r2"):
        core.request(request)
        core.gone(why=Why.WORKER_DIED)
    assert match(core.request("r3"), Reject, reason__why=Why.BACKING_OFF)


@pytest.mark.parametrize("why", [Why.LOAD_FAILED, Why.LOAD_OUT_OF_MEMORY, Why.LAUNCH_FAILED, Why.WALLS_MISSING])
def test_a_load_that_failed_cleanly_does_not_count(core: Core, why: Why) -> None:
    for request in ("r1", "r2", "r3"):
        core.request(request)
        core.gone(why=why)
    assert match(core.request("r4"), Load)


@pytest.mark.parametrize("why", [Why.WORKER_DIED, Why.TIMED_OUT])
def test_a_worker_that_fails_while_it_is_unloaded_does_not_count(core: Core, why: Why) -> None:
    core.load()
    core.unload()
    core.gone(why=why)
    assert core.state.deaths == {}


def test_other_models_do_not_rest(core: Core) -> None:
    _die(core, "r1")
    _die(core, "r2")
    assert match(core.request("r3", "b"), Load)


def test_without_a_pause_the_model_is_loaded_again_each_time() -> None:
    core = Core(limits=Limits(back_off_seconds=0.0))
    for number in range(4):
        _die(core, f"r{number}")
    core.request("r9")
    assert match(core.ready(), Dispatch, request="r9")
