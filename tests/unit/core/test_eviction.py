"""Who makes way when memory runs out."""

from __future__ import annotations

from core_driver import Core, a_need, match
from hypothesis import given
from hypothesis import strategies as st

from enclaved.core.events import Dispatch, Load, Unload
from enclaved.core.eviction import victims
from enclaved.core.ids import InstanceId, RequestId
from enclaved.core.state import Instance, Phase, Wanted


def _instance(name: str, size: int, used_at: float = 0.0, leases: int = 0) -> Instance:
    held = {RequestId(f"{name}-{number}") for number in range(leases)}
    return Instance(InstanceId(name), a_need(name, size), "cause", Phase.READY, leases=held, used_at=used_at)


def _names(chosen: list[Instance] | None) -> list[str] | None:
    return None if chosen is None else [instance.id for instance in chosen]


def test_nothing_needed_takes_nobody() -> None:
    assert victims([_instance("a", 4)], 0) == []


def test_too_little_in_all_takes_nobody() -> None:
    assert victims([_instance("a", 4), _instance("b", 4)], 9) is None


def test_the_least_recently_used_goes_first() -> None:
    assert _names(victims([_instance("a", 4, used_at=2), _instance("b", 4, used_at=1)], 3)) == ["b"]


def test_idle_ones_go_before_busy_ones() -> None:
    assert _names(victims([_instance("a", 4, used_at=1, leases=1), _instance("b", 4, used_at=2)], 3)) == ["b"]


def test_who_turns_out_not_to_be_needed_is_given_back() -> None:
    assert _names(victims([_instance("a", 2, used_at=1), _instance("b", 8, used_at=2)], 7)) == ["b"]


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 5), st.integers(0, 1)), max_size=8),
    st.integers(1, 30),
)
def test_the_chosen_suffice_and_none_of_them_could_be_spared(found: list[tuple[int, int, int]], needed: int) -> None:
    candidates = [_instance(f"i{n}", size, used, leases) for n, (size, used, leases) in enumerate(found)]
    chosen = victims(candidates, needed)
    if chosen is None:
        assert sum(size for size, _, _ in found) < needed
        return
    freed = sum(instance.bytes_booked for instance in chosen)
    assert freed >= needed
    assert all(freed - instance.bytes_booked < needed for instance in chosen)
    assert all(instance.wanted is Wanted.LOADED for instance in candidates)  # asking changes nothing


def test_an_idle_model_makes_way_and_the_load_follows_its_end(core: Core) -> None:
    old = core.load("a", 6)
    actions = core.request("r1", "b", 6)
    assert core.kinds(actions) == ["Unload"]
    assert match(actions, Unload, instance=old, cause="cause-r1")
    assert match(core.gone("a"), Load, need__model="b", cause="cause-r1")


def test_a_busy_model_finishes_its_requests_first_and_takes_no_new_one(core: Core) -> None:
    core.load("a", 6, sequences=2)
    core.request("r1", "a", 6)
    assert core.kinds(core.request("r2", "b", 6)) == []
    assert core.kinds(core.request("r3", "a", 6)) == []
    assert core.kinds(core.returned("r1")) == ["Unload"]
    assert match(core.gone("a"), Load, need__model="b")


def test_no_more_goes_than_is_needed(core: Core) -> None:
    core.load("a", 2)
    core.load("b", 3)
    core.load("c", 4)
    assert len(match(core.request("r1", "d", 4), Unload)) == 1


def test_a_victim_makes_way_for_one_model_only(core: Core) -> None:
    core.load("a", 5)
    core.load("b", 5)
    core.request("r1", "c", 5)
    core.request("r2", "d", 5)
    assert {i.need.model: i.makes_way_for for i in core.state.instances.values()} == {"a": "c", "b": "d"}


def test_nobody_goes_for_a_model_that_would_not_fit_even_then(core: Core) -> None:
    core.load("a", 2)
    core.request("r1", "b", 7)
    core.request("r2", "c", 9)
    assert core.instance("a").wanted is Wanted.LOADED


def test_a_model_just_loaded_serves_before_it_can_be_evicted(core: Core) -> None:
    core.request("r1", "a", 6)
    core.request("r2", "b", 6)
    assert match(core.ready("a"), Dispatch, request="r1")


def test_a_model_that_an_earlier_request_waits_for_is_not_evicted_for_a_later_one(core: Core) -> None:
    # Else it would be loaded again before the later one, once for each of the earlier requests.
    for request in ("r1", "r2", "r3"):
        core.request(request, "a", 6)
    core.request("r4", "b", 6)
    core.ready("a")
    core.returned("r1")
    core.returned("r2")
    assert match(core.returned("r3"), Unload)
    assert match(core.gone("a"), Load, need__model="b")
    assert core.loads("a") == 1


def test_models_that_cannot_be_there_together_take_turns(core: Core) -> None:
    for number in range(6):
        core.request(f"r{number}", "ab"[number % 2], 8)
    for number in range(6):
        model = "ab"[number % 2]
        core.ready(model)
        core.returned(f"r{number}")
        if number < 5:
            core.gone(model)
    assert core.state.requests == {}


def test_a_victim_stays_when_the_request_it_makes_way_for_is_cancelled(core: Core) -> None:
    core.load("a", 6)
    core.request("r1", "a", 6)
    core.request("r2", "b", 6)
    core.request("r3", "a", 6)
    core.cancel("r2")
    assert match(core.returned("r1"), Dispatch, request="r3")
    assert core.loads("a") == 1


def test_a_victim_stays_when_room_was_found_elsewhere(core: Core) -> None:
    core.load("b", 4)
    core.request("r1", "b", 4)
    core.load("a", 5)
    core.request("r2", "a", 5)
    core.request("r3", "c", 5)  # the busy ones are asked, the least recently used first: a alone suffices with 1 free
    [victim] = [i for i in core.state.instances.values() if i.wanted is Wanted.UNLOADED]
    other = "a" if victim.need.model == "b" else "b"
    core.request("r4", str(victim.need.model), 5)
    core.unload(other)
    core.returned("r1" if other == "b" else "r2")
    actions = core.gone(other)
    assert match(actions, Load, need__model="c")
    assert victim.wanted is Wanted.LOADED
    assert match(core.returned("r1" if victim.need.model == "b" else "r2"), Dispatch, request="r4")


def test_a_load_that_nobody_waits_for_any_more_makes_way(core: Core) -> None:
    core.request("r1", "a", 6)
    core.cancel("r1")
    assert match(core.request("r2", "b", 6), Unload, instance=core.instance("a").id)
    assert match(core.gone("a"), Load, need__model="b")


def test_a_load_that_somebody_waits_for_does_not_make_way(core: Core) -> None:
    core.request("r1", "a", 6)
    assert core.kinds(core.request("r2", "b", 6, priority="interactive")) == []


def test_a_request_for_a_model_on_its_way_out_gets_it_back_after_the_one_it_made_way_for(core: Core) -> None:
    core.load("a", 6)
    core.request("r1", "b", 6)
    assert core.kinds(core.request("r2", "a", 6)) == []
    assert match(core.gone("a"), Load, need__model="b")
    core.ready("b")
    assert core.kinds(core.returned("r1")) == ["Unload"]
    assert match(core.gone("b"), Load, need__model="a")
    assert match(core.ready("a"), Dispatch, request="r2")
