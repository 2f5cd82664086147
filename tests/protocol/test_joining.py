"""Chunks that wait for credit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave.protocol import ChunkJoiner, attach, read_chunks, write_body
from enclave.protocol.bodies import TextChunk
from enclave.protocol.joining import JOINED_BYTES_MAX


def test_what_waits_is_joined_into_one_message() -> None:
    joiner = ChunkJoiner(1)
    for text in ("a", "b", "c"):
        joiner.put(write_body(TextChunk(text=text)))
    chunk = joiner.take()
    assert chunk is not None
    assert (chunk.seq, chunk.count) == (0, 3)
    assert [value.text for value in read_chunks("generate", chunk)] == ["a", "b", "c"]
    assert joiner.take() is None


def test_chunks_with_attachments_stay_alone_and_in_order() -> None:
    joiner = ChunkJoiner(1)
    infos, frames = attach([("image/png", b"image")])
    joiner.put(b"a")
    joiner.put(b"b", 1, infos, frames)
    joiner.put(b"c")
    joiner.put(b"d", 2)
    taken = [joiner.take() for _ in range(3)]
    assert [(c.seq, c.count, c.body, c.frames) for c in taken if c] == [
        (0, 1, b"a", ()),
        (1, 1, b"b", (b"image",)),
        (2, 3, b"cd", ()),
    ]


def test_a_joined_message_has_an_upper_size() -> None:
    joiner = ChunkJoiner(1)
    half = bytes(JOINED_BYTES_MAX // 2 + 1)
    joiner.put(half)
    joiner.put(half)
    assert len(joiner) == 2


def test_what_waits_is_counted_until_it_is_taken_or_dropped() -> None:
    joiner = ChunkJoiner(1)
    infos, frames = attach([("image/png", b"image")])
    joiner.put(b"ab")
    joiner.put(b"c", 1, infos, frames)
    assert joiner.waiting_bytes == 8
    joiner.take()
    assert joiner.waiting_bytes == 6
    joiner.drop()
    assert (len(joiner), joiner.waiting_bytes) == (0, 0)


def test_what_passes_through_and_what_waited_share_one_count() -> None:
    joiner = ChunkJoiner(1)
    joiner.put(b"a", 2)
    joiner.take()
    joiner.passed(3)
    joiner.put(b"d")
    with pytest.raises(AssertionError):
        joiner.passed(1)
    last = joiner.take()
    assert last is not None
    assert last.seq == 5


@given(st.lists(st.one_of(st.binary(max_size=20), st.none())))
def test_nothing_is_lost_and_seq_has_no_gaps(steps: list[bytes | None]) -> None:
    """None takes a message; bytes put one."""
    joiner = ChunkJoiner(1)
    put = taken = b""
    count = 0
    for step in [*steps, *[None] * len(steps)]:
        if step is not None:
            joiner.put(step)
            put += step
        elif (chunk := joiner.take()) is not None:
            assert chunk.seq == count
            count += chunk.count
            taken += chunk.body
        assert joiner.waiting_bytes == len(put) - len(taken)
    assert taken == put
    assert count == sum(step is not None for step in steps)
