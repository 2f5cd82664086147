"""Loads: on demand, one at a time for each model, within the memory, never again for nothing."""

from __future__ import annotations

import pytest
from core_driver import Core, a_need, match

from enclaved.core.events import Accept, Dispatch, InstanceGone, InstanceReady, Load, Reject, Tell, Unload, Wish
from enclaved.core.ids import DeviceId
from enclaved.core.reasons import Reason, Why
from enclaved.core.state import Device, Phase


def test_a_request_for_an_absent_model_loads_it(core: Core) -> None:
    actions = core.request("r1")
    [load] = match(actions, Load)
    assert (load.cause, load.need, load.instance) == ("cause-r1", a_need(), core.instance().id)
    assert match(actions, Tell, request="r1", stage="loading", position=0, why="loading")


def test_requests_for_a_model_share_one_load(core: Core) -> None:
    core.request("r1")
    core.request("r2")
    core.request("r3", need=a_need(context=8192), wish=Wish(context=8192))
    assert core.loads("a") == 1


def test_models_that_fit_together_load_side_by_side(core: Core) -> None:
    core.request("r1", "a", 6)
    core.request("r2", "b", 4)
    assert (core.loads("a"), core.loads("b")) == (1, 1)


def test_a_model_that_does_not_fit_beside_a_load_waits_for_its_end(core: Core) -> None:
    core.request("r1", "a", 6)
    actions = core.request("r2", "b", 5)
    assert core.kinds(actions) == []
    assert match(actions, Tell, request="r2", stage="queued", why="memory")


def test_what_an_earlier_request_claims_is_not_given_to_a_later_one(core: Core) -> None:
    core.request("r1", "a", 6)
    core.request("r2", "b", 8)
    core.request("r3", "c", 3)
    assert core.loads("c") == 0


def test_a_load_that_failed_ends_everyone_who_waited_for_it(core: Core) -> None:
    core.request("r1")
    core.request("r2")
    actions = core.gone(why=Why.LOAD_FAILED)
    assert [reject.request for reject in match(actions, Reject, reason__why=Why.LOAD_FAILED)] == ["r1", "r2"]
    assert core.kinds(actions) == ["Reject", "Reject"]
    assert core.state.instances == {}


def test_a_load_that_failed_leaves_other_models_requests_alone(core: Core) -> None:
    core.request("r1", "a", 6)
    core.request("r2", "b", 8)
    actions = core.gone("a", Why.LOAD_OUT_OF_MEMORY)
    assert [reject.request for reject in match(actions, Reject)] == ["r1"]
    assert match(actions, Load, need__model="b")


def test_load_only_is_accepted_once_the_model_is_there_and_holds_no_lease(core: Core) -> None:
    core.request("r1", load_only=True)
    actions = core.ready()
    assert match(actions, Accept, request="r1", instance=core.instance().id)
    assert core.instance().leases == set()
    assert core.kinds(core.request("r2", load_only=True)) == ["Accept"]


def test_load_only_is_accepted_by_a_busy_instance(core: Core) -> None:
    core.request("r1")
    core.ready()
    assert core.kinds(core.request("r2", load_only=True)) == ["Accept"]


def test_ready_told_twice_changes_nothing_the_second_time(core: Core) -> None:
    core.request("r1")
    core.ready()
    assert core.ready(measured=9, sequences=5) == ()
    assert (core.instance().bytes_measured, core.instance().sequences) == (4, 1)


def test_ready_of_an_instance_that_is_gone_changes_nothing(core: Core) -> None:
    core.request("r1")
    old = core.instance().id
    core.gone(why=Why.LOAD_FAILED)
    core.request("r2")
    assert core.feed(InstanceReady("late", old, 4, 1, 4096)) == ()
    assert core.instance().phase is Phase.LOADING


def test_an_end_of_an_instance_that_was_replaced_leaves_the_new_one_alone(core: Core) -> None:
    core.request("r1")
    core.ready()
    old = core.instance().id
    core.gone(why=Why.WORKER_DIED)
    core.request("r2")
    core.ready()
    assert core.feed(InstanceGone("late", old, Reason(Why.WORKER_DIED))) == ()
    assert core.instance().leases == {"r2"}


def test_a_larger_wish_replaces_the_instance_after_its_leases_have_returned(core: Core) -> None:
    core.request("r1")
    core.ready()
    larger = a_need(size=5, context=8192)
    assert core.kinds(core.request("r2", need=larger, wish=Wish(context=8192))) == []
    assert core.kinds(core.returned("r1")) == ["Unload"]
    [load] = match(core.gone(), Load)
    assert load.need == larger
    assert match(core.ready(), Dispatch, request="r2")


def test_a_smaller_wish_is_served_by_what_is_there(core: Core) -> None:
    core.load(need=a_need(context=8192))
    assert core.kinds(core.request("r1", need=a_need(context=2048), wish=Wish(context=2048))) == ["Dispatch"]


def test_what_was_not_wished_for_never_reloads(core: Core) -> None:
    core.load(need=a_need(context=2048, kv_type="q8_0", flash_attention=True))
    assert core.kinds(core.request("r1", need=a_need(context=8192))) == ["Dispatch"]


def test_a_wish_that_no_load_can_fulfil_is_served_as_well_as_can_be(core: Core) -> None:
    # The backend made a plan that falls short of the wish; loading it again would give the same, for ever.
    need = a_need(context=4096)
    core.request("r1", need=need, wish=Wish(context=1_000_000, flash_attention=True))
    assert match(core.ready(), Dispatch, request="r1")
    core.returned("r1")
    later = a_need(size=5)
    assert core.kinds(core.request("r2", need=later, wish=Wish(flash_attention=True))) == ["Dispatch"]
    assert core.loads("a") == 1


def test_opposite_wishes_are_served_in_turn_with_a_load_each(core: Core) -> None:
    for number in range(4):
        kv_type = ("f16", "q8_0")[number % 2]
        core.request(f"r{number}", need=a_need(kv_type=kv_type), wish=Wish(kv_type=kv_type))
    for number in range(4):
        assert [dispatch.request for dispatch in match(core.ready(), Dispatch)] == [f"r{number}"]
        core.returned(f"r{number}")
        if number < 3:
            core.gone()
    assert core.loads("a") == 4


def test_an_instance_whose_wish_was_cancelled_stays(core: Core) -> None:
    core.request("r1")
    core.ready()
    core.request("r2", need=a_need(context=8192), wish=Wish(context=8192))
    core.request("r3")
    core.cancel("r2")
    assert match(core.returned("r1"), Dispatch, request="r3")
    assert core.loads("a") == 1


def test_room_for_the_larger_successor_is_kept_for_it(core: Core) -> None:
    core.request("r1", "a", 4)
    core.ready()
    core.request("r2", need=a_need(size=10, context=8192), wish=Wish(context=8192))
    core.request("r3", "b", 5)
    assert core.loads("b") == 0
    core.returned("r1")
    assert match(core.gone("a"), Load, need__model="a", need__context=8192)


def test_a_ready_instance_that_says_it_has_no_sequence_still_serves(core: Core) -> None:
    core.request("r1")
    assert match(core.ready(sequences=0), Dispatch, request="r1")


def test_a_worker_that_takes_more_than_the_device_has_is_ended_and_who_waits_is_told(core: Core) -> None:
    core.request("r1", "a", 4)
    actions = core.ready("a", measured=25)
    assert match(actions, Unload, instance=core.instance("a").id)
    [reject] = match(actions, Reject, request="r1")
    assert reject.reason.why is Why.TOOK_TOO_MUCH
    assert reject.reason.numbers["needed_bytes"] == 25


def test_what_was_measured_above_the_estimate_is_not_given_out(core: Core) -> None:
    core.request("r1", "a", 4)
    core.ready("a", measured=7)
    core.request("r2", "b", 4)
    assert core.loads("b") == 0


def test_what_was_measured_below_the_estimate_stays_booked(core: Core) -> None:
    core.request("r1", "a", 6)
    core.ready("a", measured=1)
    core.request("r2", "b", 5)
    assert core.loads("b") == 0


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_devices_do_not_wait_for_each_other(device: str) -> None:
    core = Core(devices=[Device(DeviceId("cpu"), 10, 4), Device(DeviceId("gpu"), 10, 1)])
    other = {"cpu": "gpu", "gpu": "cpu"}[device]
    core.request("r1", need=a_need("a", 8, device=device))
    core.request("r2", need=a_need("b", 8, device=device))
    assert match(core.request("r3", need=a_need("c", 8, device=other)), Load, need__model="c")


def test_a_model_on_one_device_is_not_loaded_on_another_too() -> None:
    core = Core(devices=[Device(DeviceId("cpu"), 10, 4), Device(DeviceId("gpu"), 10, 1)])
    core.request("r1", need=a_need("a", device="cpu"))
    core.request("r2", need=a_need("a", device="gpu"))
    assert core.loads("a") == 1
