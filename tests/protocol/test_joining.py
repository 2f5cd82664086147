"""Chunks that wait for credit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from enclave.protocol import ChunkJoiner, attach, read_chunks, write_body
from enclave.protocol.joining import JOINED_BYTES_MAX
from enclave.protocol.methods import TextChunk


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


def test_full_tells_when_the_budget_is_used_and_what_comes_anyway_is_kept() -> None:
    joiner = ChunkJoiner(1, budget_bytes=3)
    joiner.put(b"ab")
    assert not joiner.full
    joiner.put(b"c")
    assert joiner.full
    joiner.put(b"d")
    chunk = joiner.take()
    assert chunk is not None
    assert chunk.body == b"abcd"
    assert not joiner.full
    joiner.put(b"xyz")
    joiner.drop()
    assert (len(joiner), joiner.waiting_bytes, joiner.full) == (0, 0, False)


@given(st.lists(st.one_of(st.binary(max_size=20), st.none())), st.integers(1, 200))
def test_nothing_is_lost_and_seq_has_no_gaps(steps: list[bytes | None], budget: int) -> None:
    """None takes a message; bytes put one."""
    joiner = ChunkJoiner(1, budget)
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
