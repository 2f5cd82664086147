"""One call's way to its client: nothing lost or reordered, chunks as credit allows, then exactly one end."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand_ins import Conversation

from enclave.protocol.joining import BUDGET_BYTES
from enclave.protocol.messages import Chunk, Credit, Error, Progress, Result, Stage
from enclaved.daemon.refusal import RefusalError

ACTS = st.lists(
    st.one_of(st.binary(min_size=1, max_size=5), st.integers(1, 3)),
    max_size=30,
)


def _result(conversation: Conversation) -> Result:
    return Result(id=conversation.call.request.id)


def _text(conversation: Conversation) -> bytes:
    return b"".join(chunk.body for chunk in conversation.of(Chunk))


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
        call.result(_result(conversation))
    # One message is enough for whatever waits, since it was joined.
    if conversation.client.is_open(call.request.id):
        conversation.grant(Credit(id=call.request.id, chunks=1))
    assert _text(conversation) == sent
    assert sum(chunk.count for chunk in conversation.of(Chunk)) == len(sent)
    assert isinstance(conversation.received[-1], Error if fails else Result)
    assert len(conversation.of(Result)) + len(conversation.of(Error)) == 1


def test_without_credit_nothing_is_sent() -> None:
    conversation = Conversation(credit=1)
    for letter in (b"a", b"b", b"c"):
        conversation.call.chunk(letter, 1)
    conversation.call.result(_result(conversation))
    assert [chunk.body for chunk in conversation.of(Chunk)] == [b"a"]
    assert not conversation.of(Result)
    assert conversation.call.has_ended
    conversation.grant(Credit(id=conversation.call.request.id, chunks=1))
    assert [chunk.body for chunk in conversation.of(Chunk)] == [b"a", b"bc"]
    assert len(conversation.of(Result)) == 1


def test_after_the_end_nothing_more_is_told() -> None:
    conversation = Conversation()
    conversation.call.result(_result(conversation))
    conversation.call.error(RefusalError("internal", "no"))
    conversation.call.chunk(b"x", 1)
    conversation.call.progress(Progress(id=conversation.call.request.id, stage=Stage.QUEUED))
    assert len(conversation.received) == 1


def test_a_cancel_drops_what_waits_and_still_ends() -> None:
    conversation = Conversation(credit=0)
    cancelled: list[None] = []
    conversation.call.on_cancel = lambda: cancelled.append(None)
    conversation.call.chunk(b"x", 1)
    conversation.call.cancel()
    conversation.call.cancel()
    conversation.call.chunk(b"y", 1)
    conversation.call.error(RefusalError("cancelled", "The request was cancelled."))
    assert len(cancelled) == 1
    assert [type(message) for message in conversation.received] == [Error]


def test_a_cancel_after_the_end_was_said_sends_the_end() -> None:
    conversation = Conversation(credit=0)
    conversation.call.chunk(b"x", 1)
    conversation.call.result(_result(conversation))
    conversation.call.cancel()
    assert [type(message) for message in conversation.received] == [Result]


def test_a_slow_reader_pauses_its_sequence_once_and_resumes_it_once() -> None:
    conversation = Conversation(credit=0)
    told: list[str] = []
    conversation.call.on_pause = lambda: told.append("pause")
    conversation.call.on_resume = lambda: told.append("resume")
    piece = bytes(BUDGET_BYTES // 4)
    for _ in range(6):
        conversation.call.chunk(piece, 1)
    assert told == ["pause"]
    conversation.grant(Credit(id=conversation.call.request.id, chunks=10))
    assert told == ["pause", "resume"]
    assert len(_text(conversation)) == 6 * len(piece)


def test_a_paused_sequence_is_resumed_by_a_cancel_so_that_it_can_end() -> None:
    conversation = Conversation(credit=0)
    told: list[str] = []
    conversation.call.on_pause = lambda: told.append("pause")
    conversation.call.on_resume = lambda: told.append("resume")
    conversation.call.on_cancel = lambda: told.append("cancel")
    conversation.call.chunk(bytes(BUDGET_BYTES), 1)
    conversation.call.cancel()
    assert told == ["pause", "resume", "cancel"]


def test_a_client_that_goes_in_the_middle_of_a_send_cancels_once() -> None:
    conversation = Conversation(credit=0)
    cancelled: list[None] = []
    conversation.call.on_cancel = lambda: cancelled.append(None)
    for _ in range(3):
        conversation.call.chunk(bytes(600_000), 1)
    conversation.gone = True
    conversation.grant(Credit(id=conversation.call.request.id, chunks=10))
    conversation.call.result(_result(conversation))
    assert len(cancelled) == 1
    assert conversation.received == []


def test_who_goes_on_far_beyond_the_pause_floods() -> None:
    conversation = Conversation(credit=0)
    for _ in range(17):
        assert not conversation.call.is_flooded
        conversation.call.chunk(bytes(1024 * 1024), 1)
    assert conversation.call.is_flooded


@pytest.mark.parametrize("text", ["x" * 100_000, "\U0001f600" * 100_000, "\ud800" * 5000, "é" * 2048, ""])
def test_an_error_always_fits_on_the_wire(text: str) -> None:
    """Words of a worker, and names of a client's choice, may be as long as a frame and in any script."""
    conversation = Conversation()
    numbers: dict[str, int | float] = {"é" * 60 + str(number): 2**60 for number in range(16)}
    conversation.call.error(RefusalError("internal", text, hint=text, numbers=numbers, detail=text * 500))
    (error,) = conversation.of(Error)
    assert error.code == "internal"
    assert len(error.body) <= 64 * 1024
