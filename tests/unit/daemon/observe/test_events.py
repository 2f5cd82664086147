"""Events for subscribers: a snapshot, then every change in order; who is behind gets a new one."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from enclave.protocol.bodies import EventChunk, EventsParams
from enclave.protocol.codec import decode
from enclave.protocol.packing import BODY_LIMITS, unpack
from enclaved.daemon.observe.events import WAITING_BYTES_MAX, EventHub

TOPICS = ("things", "others")


class Subscriber:
    """A reader with credit, and what it makes of what it hears."""

    def __init__(self, credit: int = 1_000_000) -> None:
        self.credit = credit
        self.heard: list[EventChunk] = []
        self._waiting: list[bytes] = []
        self.believes: dict[str, dict[str, Any]] = {}
        """What it would say each topic consists of."""
        self._numbers: dict[str, int] = {}

    @property
    def waiting_bytes(self) -> int:
        return sum(map(len, self._waiting))

    @property
    def is_drained(self) -> bool:
        return not self._waiting and self.credit > 0

    def chunk(self, body: bytes, count: int) -> None:
        assert count == 1
        self._waiting.append(body)
        self.pump()

    def drop_waiting(self) -> None:
        self._waiting.clear()

    def pump(self) -> None:
        while self._waiting and self.credit:
            self.credit -= 1
            self._hear(decode_event(self._waiting.pop(0)))

    def _hear(self, event: EventChunk) -> None:
        self.heard.append(event)
        number = self._numbers.get(event.topic)
        if event.name in ("snapshot", "behind"):
            assert number is None or event.number >= number
        else:
            assert number is not None, "a change before the snapshot"
            assert event.number == number + 1, "a gap"
        self._numbers[event.topic] = event.number
        known = self.believes.setdefault(event.topic, {})
        if event.name == "snapshot":
            self.believes[event.topic] = dict(event.data or {})
        elif event.name == "removed":
            assert event.key is not None
            assert known.pop(event.key) == (event.data or {})
        elif event.name in ("added", "changed"):
            assert event.key is not None
            assert (event.key in known) == (event.name == "changed")
            known[event.key] = event.data or {}


def decode_event(body: bytes) -> EventChunk:
    return decode(EventChunk, unpack(body, BODY_LIMITS))


def a_hub() -> EventHub:
    return EventHub(TOPICS, lambda: 12.5)


def test_a_subscriber_gets_a_snapshot_and_then_each_change() -> None:
    hub, subscriber = a_hub(), Subscriber()
    hub.see("things", {"a": {"size": 1}})
    hub.subscribe(subscriber, ("things",))
    hub.see("things", {"a": {"size": 2}, "b": {}})
    hub.see("things", {"b": {}})
    told = [(event.name, event.key, event.number, event.data) for event in subscriber.heard]
    assert told == [
        ("snapshot", None, 1, {"a": {"size": 1}}),
        ("changed", "a", 2, {"size": 2}),
        ("added", "b", 3, {}),
        ("removed", "a", 4, {"size": 2}),
    ]
    assert all(event.at == 12.5 for event in subscriber.heard)


def test_what_has_not_changed_is_not_told() -> None:
    hub, subscriber = a_hub(), Subscriber()
    hub.subscribe(subscriber, TOPICS)
    hub.see("things", {"a": {"size": 1}})
    hub.see("things", {"a": {"size": 1}})
    assert [event.name for event in subscriber.heard] == ["snapshot", "snapshot", "added"]


def test_a_filter_leaves_the_other_topics_out() -> None:
    hub, subscriber = a_hub(), Subscriber()
    hub.subscribe(subscriber, ("others",))
    hub.see("things", {"a": {}})
    assert [(event.topic, event.name) for event in subscriber.heard] == [("others", "snapshot")]
    assert not hub.is_watched("things")
    assert hub.is_watched("others")


def test_who_is_behind_is_told_so_and_gets_a_new_snapshot_when_it_reads() -> None:
    hub, slow, quick = a_hub(), Subscriber(credit=1), Subscriber()
    subscription = hub.subscribe(slow, ("things",))
    hub.subscribe(quick, ("things",))
    for number in range(2000):
        hub.see("things", {"a": {"size": number, "text": "x" * 100}})
        assert slow.waiting_bytes <= WAITING_BYTES_MAX
    assert slow.waiting_bytes == 0
    slow.credit = 100
    slow.pump()
    subscription.drained()
    hub.see("things", {"b": {}})
    assert [event.name for event in slow.heard] == ["snapshot", "behind", "snapshot", "added", "removed"] or [
        event.name for event in slow.heard
    ] == ["snapshot", "behind", "snapshot", "removed", "added"]
    assert slow.believes == quick.believes == {"things": {"b": {}}}
    assert len(quick.heard) == 2000 + 3


def test_a_change_that_is_larger_than_what_may_wait_is_told_and_so_is_what_comes_after_it() -> None:
    hub, quick, slow = a_hub(), Subscriber(), Subscriber(credit=1)
    large = "x" * (WAITING_BYTES_MAX + 1)
    hub.subscribe(quick, ("things",))
    subscription = hub.subscribe(slow, ("things",))
    hub.see("things", {"a": {"text": large}})
    hub.see("things", {"a": {"size": 1}})
    assert [event.name for event in quick.heard] == ["snapshot", "added", "changed"]
    assert slow.waiting_bytes == 0
    slow.credit = 1
    slow.pump()
    hub.see("things", {"a": {"text": large}})
    slow.credit = 100
    subscription.drained()
    hub.see("things", {})
    assert [event.name for event in slow.heard] == ["snapshot", "behind", "snapshot", "removed"]
    assert slow.believes == quick.believes == {"things": {}}


def test_who_can_take_more_when_it_falls_behind_gets_the_new_snapshot_at_once() -> None:
    hub, subscriber = a_hub(), Subscriber(credit=1)
    hub.subscribe(subscriber, ("things",))
    hub.see("things", {"a": {"text": "x" * WAITING_BYTES_MAX}})
    subscriber.credit = 100  # without a word about it: what waits is read only now
    hub.see("things", {"a": {"text": "y" * WAITING_BYTES_MAX}})
    hub.see("things", {})
    assert [event.name for event in subscriber.heard] == ["snapshot", "behind", "snapshot", "removed"]


def test_a_subscriber_without_credit_gets_its_first_snapshot_as_things_are_when_it_asks() -> None:
    hub, subscriber = a_hub(), Subscriber(credit=0)
    subscription = hub.subscribe(subscriber, ("things",))
    hub.see("things", {"a": {}})
    assert subscriber.waiting_bytes == 0
    subscriber.credit = 5
    subscription.drained()
    assert [(event.name, event.data) for event in subscriber.heard] == [("snapshot", {"a": {}})]


def test_who_has_ended_hears_nothing_more() -> None:
    hub, subscriber = a_hub(), Subscriber()
    subscription = hub.subscribe(subscriber, ("things",))
    hub.end(subscription)
    hub.end(subscription)
    hub.see("things", {"a": {}})
    assert len(subscriber.heard) == 1


THINGS = st.dictionaries(
    st.sampled_from("abcd"),
    st.fixed_dictionaries({"size": st.integers(0, 2), "text": st.sampled_from(["", "x" * WAITING_BYTES_MAX])}),
)


@given(st.lists(st.one_of(st.tuples(st.sampled_from(TOPICS), THINGS), st.integers(1, 3)), max_size=60))
def test_whoever_has_read_all_knows_how_things_are(acts: list[Any]) -> None:
    """A subscriber that reads as it likes; `_hear` checks that there is no gap and no change of what is unknown."""
    hub, subscriber = a_hub(), Subscriber(credit=1)
    subscription = hub.subscribe(subscriber, TOPICS)
    now: dict[str, dict[str, Any]] = {topic: {} for topic in TOPICS}
    for act in acts:
        if isinstance(act, int):
            subscriber.credit += act
            subscriber.pump()
            subscription.drained()
        else:
            topic, things = act
            now[topic] = things
            hub.see(topic, things)
    subscriber.credit += 1_000_000
    subscriber.pump()
    subscription.drained()
    assert subscriber.believes == now


def test_the_topics_are_those_of_the_protocol() -> None:
    from enclave.protocol.bodies import EVENT_TOPICS

    assert EventsParams(topics=EVENT_TOPICS).topics == ("models", "instances", "downloads", "hardware")
