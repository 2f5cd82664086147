"""One call's way to its client: nothing lost or reordered, chunks as credit allows, then exactly one end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand_ins import Conversation

from enclave.protocol.messages import Chunk, Credit, Error, Limits, Progress, Result, Stage
from enclaved.core.ids import ClientId
from enclaved.daemon.broker.call import Call
from enclaved.daemon.refusal import RefusalError

ACTS = st.lists(
    st.one_of(st.binary(min_size=1, max_size=5), st.integers(1, 3)),
    max_size=30,
)
BUDGET = 100_000
SMALL = Limits(unread_bytes=BUDGET)


def _result(call: Call, size: int = 0) -> Result:
    return Result(id=call.request.id, body=bytes(size))


def _text(conversation: Conversation, call: Call | None = None) -> bytes:
    number = (call or conversation.call).request.id
    return b"".join(chunk.body for chunk in conversation.of(Chunk) if chunk.id == number)


def _told_by(call: Call) -> list[str]:
    told: list[str] = []
    call.on_pause = lambda: told.append("pause")
    call.on_resume = lambda: told.append("resume")
    call.on_cancel = lambda: told.append("cancel")
    return told


@given(ACTS, st.integers(0, 3), st.booleans())
def test_chunks_arrive_in_order_and_whole_and_before_the_end(acts: list[Any], credit: int, fails: bool) -> None:
    conversation = Conversation(credit=credit)
    call, sent = conversation.call, b""
    for act in acts:
        if isinstance(act, bytes):
            call.chunk(act, len(act))
            sent += act
        else:
            conversation.grant(Credit(id=call.request.id, chunks=act))
        assert sent.startswith(_text(conversation))
    if fails:
        call.error(RefusalError("internal", "no"))
    else:
        call.result(_result(call))
    # One message is enough for whatever waits, since it was joined.
    if conversation.client.is_open(call.request.id):
        conversation.grant(Credit(id=call.request.id, chunks=1))
    assert _text(conversation) == sent
    assert sum(chunk.count for chunk in conversation.of(Chunk)) == len(sent)
    assert isinstance(conversation.received[-1], Error if fails else Result)
    assert len(conversation.of(Result)) + len(conversation.of(Error)) == 1


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 40_000), st.sampled_from("cgl")), max_size=60))
def test_whatever_the_client_reads_nothing_is_lost_and_what_waits_is_bounded(acts: list[tuple[int, int, str]]) -> None:
    """Three calls of one client that grants and reads as it likes; makers that stop when they are told to."""
    conversation = Conversation(credit=1, limits=SMALL)
    calls = [conversation.call, conversation.another(credit=1), conversation.another(credit=0)]
    made = [b""] * 3
    stopped: set[int] = set()
    for number, call in enumerate(calls):
        call.on_pause = lambda number=number: stopped.add(number)
        call.on_resume = lambda number=number: stopped.discard(number)
    for number, size, kind in acts:
        call = calls[number]
        if kind == "c" and number not in stopped:
            body = bytes([number]) * (size + 1)
            call.chunk(body, 1)
            made[number] += body
        elif kind == "g":
            conversation.grant(Credit(id=call.request.id, chunks=1))
        elif kind == "l":
            conversation.deaf = not conversation.deaf
            if not conversation.deaf:
                conversation.listen()
        assert sum(each.waiting_bytes for each in calls) <= BUDGET + 3 * 40_001
    conversation.listen()
    for call in calls:
        call.result(_result(call))
    for _ in range(100):
        for call in calls:
            if conversation.client.is_open(call.request.id):
                conversation.grant(Credit(id=call.request.id, chunks=1))
    assert [_text(conversation, call) for call in calls] == made
    assert len(conversation.of(Result)) == 3
    assert not stopped


def test_without_credit_nothing_is_sent() -> None:
    conversation = Conversation(credit=1)
    for letter in (b"a", b"b", b"c"):
        conversation.call.chunk(letter, 1)
    conversation.call.result(_result(conversation.call))
    assert [chunk.body for chunk in conversation.of(Chunk)] == [b"a"]
    assert not conversation.of(Result)
    assert conversation.call.has_ended
    conversation.grant(Credit(id=conversation.call.request.id, chunks=1))
    assert [chunk.body for chunk in conversation.of(Chunk)] == [b"a", b"bc"]
    assert len(conversation.of(Result)) == 1


def test_after_the_end_nothing_more_is_told() -> None:
    conversation = Conversation()
    conversation.call.result(_result(conversation.call))
    conversation.call.error(RefusalError("internal", "no"))
    conversation.call.chunk(b"x", 1)
    conversation.call.progress(Progress(id=conversation.call.request.id, stage=Stage.QUEUED))
    assert len(conversation.received) == 1


def test_a_cancel_drops_what_waits_and_still_ends() -> None:
    conversation = Conversation(credit=0)
    told = _told_by(conversation.call)
    conversation.call.chunk(b"x", 1)
    conversation.call.cancel()
    conversation.call.cancel()
    conversation.call.chunk(b"y", 1)
    conversation.call.error(RefusalError("cancelled", "The request was cancelled."))
    assert told == ["cancel"]
    assert [type(message) for message in conversation.received] == [Error]


def test_a_cancel_after_the_end_was_said_sends_the_end() -> None:
    conversation = Conversation(credit=0)
    conversation.call.chunk(b"x", 1)
    conversation.call.result(_result(conversation.call))
    conversation.call.cancel()
    assert [type(message) for message in conversation.received] == [Result]


def test_a_slow_reader_pauses_its_sequence_once_and_resumes_it_once() -> None:
    conversation = Conversation(credit=0, limits=SMALL)
    told = _told_by(conversation.call)
    piece = bytes(BUDGET // 4)
    for _ in range(6):
        conversation.call.chunk(piece, 1)
    assert told == ["pause"]
    for _ in range(10):
        conversation.grant(Credit(id=conversation.call.request.id, chunks=1))
    assert told == ["pause", "resume"]
    assert len(_text(conversation)) == 6 * len(piece)


def test_a_paused_sequence_is_resumed_by_a_cancel_so_that_it_can_end() -> None:
    conversation = Conversation(credit=0, limits=SMALL)
    told = _told_by(conversation.call)
    conversation.call.chunk(bytes(BUDGET), 1)
    conversation.call.cancel()
    assert told == ["pause", "resume", "cancel"]


def test_a_stream_that_is_read_goes_on_while_another_of_its_session_is_not() -> None:
    conversation = Conversation(credit=0, limits=SMALL)
    other = conversation.another(credit=64)
    stuck, told = _told_by(conversation.call), _told_by(other)
    conversation.call.chunk(bytes(BUDGET), 1)
    for _ in range(60):
        other.chunk(b"x", 1)
    assert (stuck, told) == (["pause"], [])
    assert len(_text(conversation, other)) == 60


def test_a_stream_that_cannot_be_sent_in_a_full_session_pauses_and_goes_on_when_it_is_read_itself() -> None:
    conversation = Conversation(credit=0, limits=SMALL)
    other = conversation.another(credit=0)
    told = _told_by(other)
    conversation.call.chunk(bytes(BUDGET), 1)
    other.chunk(b"x", 1)
    assert told == ["pause"]
    conversation.grant(Credit(id=other.request.id, chunks=1))
    assert told == ["pause", "resume"]
    assert _text(conversation, other) == b"x"


def test_the_end_of_one_stream_relieves_the_others() -> None:
    conversation = Conversation(credit=0, limits=SMALL)
    other = conversation.another(credit=0)
    told = _told_by(other)
    conversation.call.chunk(bytes(BUDGET), 1)
    other.chunk(b"x", 1)
    conversation.call.cancel()
    assert told == ["pause", "resume"]


def test_a_client_that_reads_nothing_is_sent_no_more_than_its_budget_whatever_credit_it_gave() -> None:
    conversation = Conversation(credit=60_000, limits=SMALL)
    told = _told_by(conversation.call)
    conversation.deaf = True
    for _ in range(300):
        conversation.call.chunk(bytes(1000), 1)
    unread = vars(conversation)["_unread"]
    assert BUDGET <= sum(len(frame) for frames in unread for frame in frames) + 96 * 2 * len(unread) < BUDGET + 10_000
    assert told == ["pause"]
    conversation.listen()
    assert len(_text(conversation)) == 300 * 1000
    assert told == ["pause", "resume"]


def test_progress_is_left_out_for_a_client_that_reads_nothing() -> None:
    conversation = Conversation(credit=60_000, limits=SMALL)
    conversation.deaf = True
    conversation.call.chunk(bytes(BUDGET), 1)
    conversation.call.progress(Progress(id=conversation.call.request.id, stage=Stage.QUEUED))
    conversation.listen()
    assert conversation.of(Progress) == []


def test_results_of_a_client_that_reads_nothing_wait_and_are_not_lost() -> None:
    conversation = Conversation(limits=SMALL)
    calls = [conversation.call, *(conversation.another() for _ in range(9))]
    conversation.deaf = True
    for call in calls:
        call.result(_result(call, 30_000))
    assert len(vars(conversation)["_unread"]) < 10
    conversation.listen()
    assert [result.id for result in conversation.of(Result)] == [call.request.id for call in calls]


def test_a_client_that_goes_in_the_middle_of_a_send_cancels_once() -> None:
    conversation = Conversation(credit=0)
    told = _told_by(conversation.call)
    for _ in range(3):
        conversation.call.chunk(bytes(600_000), 1)
    conversation.gone = True
    conversation.grant(Credit(id=conversation.call.request.id, chunks=10))
    conversation.call.result(_result(conversation.call))
    assert told == ["cancel"]
    assert conversation.received == []


def test_who_goes_on_far_beyond_the_pause_floods() -> None:
    conversation = Conversation(credit=0, limits=SMALL)
    conversation.call.chunk(bytes(BUDGET), 1)
    for _ in range(4):
        conversation.call.chunk(bytes(1024 * 1024), 1)
        assert not conversation.call.is_flooded
    conversation.call.chunk(b"x", 1)
    assert conversation.call.is_flooded


def test_a_drained_reader_that_asks_for_more_is_told_of() -> None:
    conversation = Conversation(credit=0)
    call = conversation.call
    drained: list[bool] = []
    call.on_drained = lambda: drained.append(call.is_drained)
    call.chunk(b"x", 1)
    conversation.grant(Credit(id=call.request.id, chunks=1))
    assert drained == []
    conversation.grant(Credit(id=call.request.id, chunks=1))
    assert drained == [True]
    call.chunk(b"y", 1)
    assert not call.is_drained


def test_what_is_dropped_leaves_no_gap() -> None:
    conversation = Conversation(credit=1)
    call = conversation.call
    for letter in (b"a", b"b", b"c"):
        call.chunk(letter, 1)
    call.drop_waiting()
    call.chunk(b"d", 1)
    conversation.grant(Credit(id=call.request.id, chunks=1))
    assert [(chunk.seq, chunk.body) for chunk in conversation.of(Chunk)] == [(0, b"a"), (1, b"d")]


@pytest.mark.parametrize("text", ["x" * 100_000, "\U0001f600" * 100_000, "\ud800" * 5000, "é" * 2048, ""])
def test_an_error_always_fits_on_the_wire(text: str) -> None:
    """Words of a worker, and names of a client's choice, may be as long as a frame and in any script."""
    conversation = Conversation()
    numbers: dict[str, int | float] = {"é" * 60 + str(number): 2**60 for number in range(16)}
    conversation.call.error(RefusalError("internal", text, hint=text, numbers=numbers, detail=text * 500))
    (error,) = conversation.of(Error)
    assert error.code == "internal"
    assert len(error.body) <= 64 * 1024


def test_a_body_is_given_once_and_kept_no_longer() -> None:
    conversation = Conversation()
    call = conversation.call
    call.request = type(call.request)(id=call.request.id, method="generate", body=b"prompt")
    assert call.take_body() == b"prompt"
    assert call.take_body() == b""


def test_what_an_earlier_session_still_answers_does_not_count_against_the_next() -> None:
    conversation = Conversation(credit=100, limits=SMALL)
    connection, call = conversation.connection, conversation.call
    conversation.deaf = True
    call.chunk(bytes(BUDGET), 1)  # the window is closed
    connection.begin(ClientId("c2"))
    call.result(_result(call, BUDGET))
    assert " 0 bytes wait" in repr(connection)


@pytest.mark.parametrize("ends", ["first", "before its last chunk"])
def test_an_answer_that_is_broken_off_leaves_nothing_that_counts(ends: str) -> None:
    conversation = Conversation(credit=0)
    call = conversation.call
    call.chunk(bytes(1000), 1)
    if ends == "first":
        call.result(Result(id=call.request.id, body=bytes(100), attachments=(), frames=(b"not announced",)))
    else:
        call.result(_result(call, 100))
        conversation.connection.session.limits = Limits(body_bytes=10)
    conversation.grant(Credit(id=call.request.id, chunks=5))
    (error,) = conversation.of(Error)
    assert error.code == "internal"
    assert " 0 bytes wait" in repr(conversation.connection)


@pytest.mark.asyncio
async def test_an_answer_waits_for_room_until_the_client_has_read() -> None:
    conversation = Conversation(credit=100, limits=SMALL)
    call = conversation.call
    await call.room()
    conversation.deaf = True
    call.chunk(bytes(BUDGET), 1)
    rooms = [asyncio.ensure_future(call.room()) for _ in range(2)]
    await asyncio.sleep(0)
    rooms[0].cancel()
    assert not rooms[1].done()
    conversation.listen()
    await rooms[1]
    assert call.has_room


@pytest.mark.asyncio
async def test_a_call_that_came_while_its_client_does_not_read_is_answered_later_and_one_at_a_time() -> None:
    conversation = Conversation(credit=100, limits=SMALL)
    connection = conversation.connection
    conversation.deaf = True
    conversation.call.chunk(bytes(BUDGET), 1)
    late = [conversation.another() for _ in range(3)]
    assert [connection.take_on(call) for call in late] == [False] * 3
    late[1].cancel()
    assert conversation.started == []
    conversation.listen()
    assert conversation.started == [late[0]]
    newest = conversation.another()
    assert not connection.take_on(newest), "it would overtake"
    connection.start_deferred()
    connection.start_deferred()
    assert conversation.started == [late[0], late[2], newest]
    (error,) = conversation.of(Error)
    assert (error.id, error.code) == (late[1].request.id, "cancelled")


@pytest.mark.asyncio
async def test_a_deadline_counts_while_a_call_is_put_off() -> None:
    conversation = Conversation(credit=100, limits=SMALL)
    connection = conversation.connection
    conversation.deaf = True
    conversation.call.chunk(bytes(BUDGET), 1)
    short, long = conversation.another(deadline=0.01), conversation.another(deadline=1000.0)
    over = asyncio.Event()
    fail = short.error

    def failed(refusal: RefusalError) -> None:
        fail(refusal)
        over.set()

    vars(short)["error"] = failed
    assert not connection.take_on(short)
    assert not connection.take_on(long)
    await over.wait()
    conversation.listen()
    assert conversation.started == [long]
    assert 0 < (long.request.deadline or 0) < 1000.0
    (error,) = conversation.of(Error)
    assert (error.id, error.code) == (short.request.id, "deadline")


def test_what_lacks_credit_puts_nothing_off() -> None:
    """It is the client's choice to ask for no more of one answer; that it reads shows in the others."""
    conversation = Conversation(credit=0, limits=SMALL)
    conversation.call.chunk(bytes(2 * BUDGET), 1)
    assert conversation.connection.is_full
    assert conversation.connection.take_on(conversation.another())
    assert conversation.call.has_room
