"""Compute threads: never more than cores, at no point of a list of actions."""

from __future__ import annotations

from core_driver import Core, match
from hypothesis import given
from hypothesis import strategies as st

from enclaved.core.cores import grants
from enclaved.core.events import Action, Dispatch, Load, SetThreads
from enclaved.core.ids import InstanceId


@given(st.integers(0, 20), st.integers(0, 64))
def test_cores_are_handed_out_whole_and_evenly(busy: int, cores: int) -> None:
    granted = grants({InstanceId(f"i{number}"): 1024 for number in range(busy)}, cores)
    assert len(granted) == busy
    if busy:
        assert sum(granted.values()) == max(cores, busy)
        assert max(granted.values()) - min(granted.values()) <= 1
        assert min(granted.values()) >= 1


@given(st.lists(st.integers(1, 8), max_size=8), st.integers(1, 64))
def test_nobody_gets_more_than_it_has_use_for_and_no_core_idles_that_somebody_could_use(
    most: list[int], cores: int
) -> None:
    busy = {InstanceId(f"i{number}"): threads for number, threads in enumerate(most)}
    granted = grants(busy, cores)
    assert all(1 <= granted[instance] <= busy[instance] for instance in busy)
    assert sum(granted.values()) == max(min(cores, sum(most)), len(most))


def _order(actions: tuple[Action, ...]) -> list[tuple[str, int]]:
    """What happens to threads, in order: who, and how many from then on (a dispatch: 0)."""
    found: list[tuple[str, int]] = []
    for action in actions:
        if isinstance(action, SetThreads | Load):
            found.append((action.instance, action.threads))
        elif isinstance(action, Dispatch):
            found.append((action.instance, 0))
    return found


def test_one_busy_instance_gets_all_cores(core: Core) -> None:
    [load] = match(core.request("r1"), Load)
    assert load.threads == 4


def test_the_loser_is_told_before_the_load_that_takes_its_threads(core: Core) -> None:
    core.request("r1", "a", 4)
    assert _order(core.request("r2", "b", 4)) == [("i1", 2), ("i2", 2)]


def test_the_loser_is_told_before_the_dispatch_that_takes_its_threads(core: Core) -> None:
    core.load("a", 4)
    core.load("b", 4)
    core.request("r1", "a")
    assert _order(core.request("r2", "b")) == [("i1", 2), ("i2", 2), ("i2", 0)]


def test_a_load_and_a_dispatch_in_one_step_agree_on_the_threads(core: Core) -> None:
    core.request("r1", "a", 6)
    core.request("r2", "a", 6)
    core.request("r3", "b", 6, priority="background")
    core.request("r4", "c", 2, priority="background")
    core.ready("a")
    core.gone("a")
    instances = {instance.id: instance.threads for instance in core.state.instances.values() if instance.is_busy}
    assert sum(instances.values()) == 4


def test_who_stays_busy_wins_what_others_leave_and_the_cause_is_the_leaving(core: Core) -> None:
    core.load("a", 4)
    core.load("b", 4)
    core.request("r1", "a")
    core.request("r2", "b")
    assert match(core.returned("r1"), SetThreads) == [SetThreads("end-r1", core.instance("b").id, 4)]


def test_an_idle_instance_is_told_nothing(core: Core) -> None:
    core.load("a", 4)
    assert match(core.request("r1", "b", 4), SetThreads) == []


def test_more_busy_instances_than_cores_get_one_each() -> None:
    core = Core(memory=10, cores=2)
    for model in "abcd":
        core.request(f"r-{model}", model, 2)
    assert [instance.threads for instance in core.state.instances.values()] == [1, 1, 1, 1]
