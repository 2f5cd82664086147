"""A person wants a model out of memory, in each phase of its instance."""

from __future__ import annotations

from core_driver import Core, match

from enclaved.core.events import Dispatch, InstanceReady, Load, Reject, Unload
from enclaved.core.reasons import Why
from enclaved.core.state import Phase


def test_an_idle_instance_is_unloaded_at_once(core: Core) -> None:
    instance = core.load()
    assert match(core.unload(), Unload, instance=instance, cause="unload-a")
    assert core.gone() == ()
    assert core.state.instances == {}


def test_a_busy_instance_is_unloaded_when_its_leases_have_returned(core: Core) -> None:
    core.load()
    core.request("r1")
    assert core.kinds(core.unload()) == []
    assert match(core.returned("r1"), Unload, cause="unload-a")


def test_an_unload_asked_twice_is_one_unload(core: Core) -> None:
    core.load()
    core.unload()
    assert core.unload() == ()


def test_a_load_is_ended_and_whoever_waited_for_it_is_told(core: Core) -> None:
    core.request("r1")
    actions = core.unload()
    assert match(actions, Reject, request="r1", reason__why=Why.UNLOADED)
    assert match(actions, Unload)
    assert core.gone(why=Why.UNLOADED) == ()


def test_a_load_that_ends_well_while_it_is_ended_does_not_come_back(core: Core) -> None:
    core.request("r1")
    core.unload()
    instance = core.instance()
    assert core.feed(InstanceReady("late", instance.id, 4, 1, 4096)) == ()
    assert instance.phase is Phase.UNLOADING


def test_whoever_waits_for_a_busy_instance_does_not_bring_the_model_back(core: Core) -> None:
    core.load()
    core.request("r1")
    core.request("r2")
    assert match(core.unload(), Reject, request="r2", reason__why=Why.UNLOADED)
    core.returned("r1")
    assert core.gone() == ()


def test_whoever_comes_after_the_unload_waits_for_its_end_and_loads_again(core: Core) -> None:
    core.load()
    core.request("r1")
    core.unload()
    assert match(core.request("r2"), Dispatch) == []
    core.returned("r1")
    assert match(core.gone(), Load, cause="cause-r2")


def test_an_unload_takes_away_the_reprieve_of_a_victim(core: Core) -> None:
    core.load("a", 6)
    core.request("r1", "a", 6)
    core.request("r2", "b", 6)
    core.unload("a")
    core.cancel("r2")
    assert match(core.returned("r1"), Unload, cause="unload-a")


def test_an_unload_of_a_model_that_is_not_there_does_nothing(core: Core) -> None:
    assert core.unload() == ()


def test_other_models_stay(core: Core) -> None:
    core.load("a", 2)
    core.load("b", 2)
    core.unload("a")
    assert core.kinds(core.request("r1", "b", 2)) == ["Dispatch"]
