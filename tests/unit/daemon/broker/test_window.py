"""What was sent and not read: asked for by pings, confirmed by pongs, bounded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from enclaved.daemon.broker.window import FRAME_OVERHEAD_BYTES, MESSAGES_MAX, PARTS, Window

BUDGET = 8000


def filled(size_bytes: int = BUDGET) -> Window:
    window = Window(BUDGET)
    window.sent([bytes(size_bytes - FRAME_OVERHEAD_BYTES)])
    return window


def test_a_window_closes_at_its_budget_and_opens_when_what_was_sent_is_read() -> None:
    window = filled(BUDGET - 1)
    assert window.is_open
    window.sent([b""])
    assert not window.is_open
    window.asked(b"1")
    assert window.answered(b"1")
    assert window.is_open
    assert window.unread_bytes == 0


def test_many_small_messages_close_it_before_the_mark_at_which_a_socket_stops_reading() -> None:
    assert MESSAGES_MAX < 1000, "ZeroMQ's own mark"
    window = Window(1_000_000)
    pings = 0
    for _ in range(MESSAGES_MAX - 1):
        window.sent([b""])
        if window.ping_due:
            window.asked(b"%d" % pings)
            pings += 1
        assert window.is_open
    window.sent([b""])
    assert not window.is_open
    assert pings == PARTS - 1
    assert window.answered(b"0")
    assert window.is_open
    assert window.unread_messages == MESSAGES_MAX - MESSAGES_MAX // PARTS


def test_it_is_time_to_ask_when_a_part_of_the_budget_was_sent_and_not_before() -> None:
    window = filled(BUDGET // PARTS - 1)
    assert not window.ping_due
    window.sent([b"x"])
    assert window.ping_due
    window.asked(b"1")
    assert not window.ping_due


def test_a_pong_confirms_what_was_sent_before_its_ping_and_nothing_after() -> None:
    window = filled(1000)
    window.asked(b"1")
    window.sent([bytes(500)])
    window.answered(b"1")
    assert window.unread_bytes == 500 + FRAME_OVERHEAD_BYTES


def test_data_that_was_never_sent_or_is_answered_twice_confirms_nothing() -> None:
    window = filled(1000)
    assert not window.answered(b"")
    window.asked(b"1")
    assert not window.answered(b"2")
    assert window.unread_bytes == 1000
    assert window.answered(b"1")
    window.sent([bytes(100)])
    assert not window.answered(b"1")
    assert window.unread_bytes > 100


def test_a_later_pong_confirms_the_earlier_pings_too() -> None:
    window = filled(1000)
    for data in (b"1", b"2", b"3"):
        window.asked(data)
    assert window.answered(b"2")
    assert not window.answered(b"1")
    assert window.answered(b"3")


def test_as_much_forced_through_a_closed_window_as_it_holds_is_a_burst() -> None:
    window = filled()
    for _ in range(3):
        window.sent([bytes(BUDGET // 4)])
    assert not window.is_burst
    window.sent([bytes(BUDGET // 4)])
    assert window.is_burst


@given(st.lists(st.integers(1, 3000)), st.integers(2, 100_000))
def test_who_reads_now_and_then_is_never_stuck(sizes: list[int], budget: int) -> None:
    """At whatever moment the window is closed, a ping is under way whose pong opens it."""
    window = Window(budget)
    asked: list[bytes] = []
    for number, size in enumerate(sizes):
        if not window.is_open:
            assert asked
            assert window.answered(asked.pop())
            asked.clear()
            assert window.is_open
        window.sent([bytes(size)])
        if window.ping_due:
            asked.append(number.to_bytes(4, "big"))
            window.asked(asked[-1])
