"""Frames arrive whole however the bytes are cut, and never grow without bound."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclaved.link.framing import FRAME_BYTES_MAX, Framer, LinkError, frame

PAYLOADS = st.lists(st.binary(max_size=300), max_size=8)


@given(PAYLOADS)
def test_what_was_framed_comes_out_whole(payloads: list[bytes]) -> None:
    assert Framer().feed(b"".join(map(frame, payloads))) == payloads


@given(PAYLOADS)
def test_byte_by_byte_is_the_same_as_whole(payloads: list[bytes]) -> None:
    framer = Framer()
    data = b"".join(map(frame, payloads))
    assert [payload for byte in data for payload in framer.feed(bytes([byte]))] == payloads


@given(PAYLOADS, st.lists(st.integers(0, 3000), max_size=6))
def test_any_cut_is_the_same_as_whole(payloads: list[bytes], cuts: list[int]) -> None:
    framer = Framer()
    data = b"".join(map(frame, payloads))
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [data[start:end] for start, end in itertools.pairwise(places)]
    assert [payload for piece in pieces for payload in framer.feed(piece)] == payloads


@given(st.binary(max_size=50), st.binary(max_size=50), st.integers(0, 53))
def test_the_beginning_of_the_next_frame_waits_for_its_rest(one: bytes, other: bytes, cut: int) -> None:
    framer = Framer()
    following = frame(other)
    cut = min(cut, len(following) - 1)
    assert framer.feed(frame(one) + following[:cut]) == [one]
    assert framer.feed(following[cut:]) == [other]


def test_nothing_is_made_of_garbage_behind_a_frame() -> None:
    with pytest.raises(LinkError):
        Framer().feed(frame(b"good") + b"\xff" * 8)


@pytest.mark.parametrize("length", [FRAME_BYTES_MAX + 1, 2**32 - 1])
def test_a_length_above_the_limit_is_refused_before_its_bytes_come(length: int) -> None:
    with pytest.raises(LinkError):
        Framer().feed(struct.pack("<I", length))


def test_a_payload_above_the_limit_is_not_framed() -> None:
    with pytest.raises(LinkError):
        frame(bytes(FRAME_BYTES_MAX + 1))


def test_the_largest_payload_allowed_passes() -> None:
    payload = bytes(FRAME_BYTES_MAX)
    assert Framer().feed(frame(payload)) == [payload]
