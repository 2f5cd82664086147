"""The story is bounded, holds no words, finds by id, and can be replayed."""

from __future__ import annotations

from dataclasses import fields
from typing import get_args

import pytest
from core_driver import Core, match

from enclave.protocol.packing import HEADER_LIMITS, pack, unpack
from enclaved.core.events import Action, Event, InstanceGone, LeaseReturned, Reject, Unload
from enclaved.core.ids import InstanceId, RequestId
from enclaved.core.reasons import Reason, Why
from enclaved.core.story import Record, Story

SECRET = "the model said: my password is swordfish"
LOST = LeaseReturned("cause", RequestId("r1"), InstanceId("i1"), lost=Reason(Why.WORKER_DIED, {"signal": 11}, SECRET))
GONE = InstanceGone("cause", InstanceId("i1"), Reason(Why.LOAD_FAILED, {}, SECRET))
REJECT = Reject("cause", RequestId("r1"), Reason(Why.WORKER_DIED, {}, SECRET))


def _eventful() -> Core:
    """Two models that cannot be there together, a cancel, a death, an unload, the end."""
    core = Core(memory=10)
    core.request("r1", "a", 6)
    core.request("r2", "b", 6, deadline_at=100.0)
    core.ready("a")
    core.request("r3", "a", 6)
    core.cancel("r1")
    core.returned("r1")
    core.gone("a")
    core.ready("b")
    core.returned("r2", Why.WORKER_DIED)
    core.gone("b", Why.WORKER_DIED)
    core.ready("a")
    core.request("r4", "c", 99)
    core.unload("a")
    core.request("r5", "b", 2)
    core.shut_down()
    core.returned("r3")
    return core


def test_the_oldest_records_make_room_for_the_newest() -> None:
    story = Story(records_max=3)
    for number in range(5):
        story.add(float(number), GONE, [REJECT])
    assert [record.number for record in story.records()] == [8, 9, 10]


@pytest.mark.parametrize("said", [LOST, GONE])
def test_words_of_a_worker_become_their_length(said: Event) -> None:
    story = Story()
    story.add(1.0, said, [REJECT])
    text = repr([(record, record.to_map()) for record in story.records()])
    assert "swordfish" not in text
    assert text.count(f"<{len(SECRET)} characters>") == 4


def test_what_is_redacted_stays_the_same_when_it_is_kept_again() -> None:
    first, second = Story(), Story()
    first.add(1.0, GONE, [])
    [record] = first.records()
    assert isinstance(record.said, InstanceGone)
    second.add(1.0, record.said, [])
    assert second.records() == first.records()


def test_a_cause_finds_everything_that_followed_from_it() -> None:
    core = _eventful()
    found = core.story.about("cause-r2")
    names = [type(record.said).__name__ for record in found]
    assert names == ["RequestArrived", "Tell", "Unload", "Load", "Tell", "Dispatch"]
    assert all(record.said.cause == "cause-r2" for record in found)


def test_an_unload_is_found_by_the_request_that_needed_the_room_and_by_its_instance(core: Core) -> None:
    instance = core.load("a", 6)
    core.request("r1", "b", 6)
    for name in ("cause-r1", instance):
        assert match([record.said for record in core.story.about(name)], Unload, instance=instance)


def test_a_model_finds_the_requests_and_loads_of_it_and_nothing_of_others() -> None:
    found = [record.to_map() for record in _eventful().story.about("c")]
    assert [(entry["name"], entry["need"]["model"]) for entry in found] == [("RequestArrived", "c")]


def test_an_id_that_equals_a_word_of_ours_finds_only_what_it_names(core: Core) -> None:
    core.request("r1", client="normal")
    core.request("r2", client="loading")
    assert [record.to_map().get("client") for record in core.story.about("normal", "f16")] == ["normal"]


def test_without_ids_everything_is_told_and_a_limit_keeps_the_newest() -> None:
    story = _eventful().story
    assert story.about() == story.records()
    assert story.about(limit=2) == story.records()[-2:]
    assert story.about("r1", limit=1) == story.about("r1")[-1:]
    assert story.about(limit=0) == []


def test_a_copy_is_the_story_until_then() -> None:
    story = Story(records_max=4)
    story.add(1.0, GONE, [REJECT])
    copy = story.copy()
    story.add(2.0, LOST, [])
    assert copy.records() == story.records()[:2]
    assert copy.about_models() == []
    for _ in range(3):
        copy.add(3.0, GONE, [])
    assert (len(copy.records()), len(story.records())) == (4, 3)


def test_a_record_is_a_plain_map_that_can_be_packed() -> None:
    core = _eventful()
    records = core.story.records()
    for record in records:
        told = record.to_map()
        assert unpack(pack(told), HEADER_LIMITS) == told
        assert (told["number"], told["at"], told["kind"]) == (record.number, record.at, record.kind)
        assert told["name"] == type(record.said).__name__
        assert told["cause"] == record.said.cause
    [gone] = [record.to_map() for record in records if match([record.said], InstanceGone, reason__why=Why.WORKER_DIED)]
    assert gone["reason"] == {"why": "worker_died", "numbers": {}, "detail": "<5 characters>"}


def test_no_field_of_an_event_or_action_hides_one_of_the_record() -> None:
    own = {slot.name for slot in fields(Record)} | {"name"}
    for kind in (*get_args(Event), *get_args(Action)):
        assert not own & {slot.name for slot in fields(kind)}, kind


def test_the_recorded_events_lead_to_the_recorded_actions_again() -> None:
    core = _eventful()
    again = Core(memory=10)
    for record in core.story.records():
        if isinstance(record.said, Event):
            again.feed(record.said, record.at)
    assert again.story.records() == core.story.records()
    assert len(core.story.records()) >= 40
