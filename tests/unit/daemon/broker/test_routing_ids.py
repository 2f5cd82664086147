"""Ids that ZeroMQ gave out are told from those that a peer claims."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclaved.daemon.broker.routing_ids import SILENT_MAX, RoutingIds


def automatic(number: int) -> bytes:
    return struct.pack(">xI", number % 2**32)


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, SILENT_MAX), max_size=20))
def test_ids_that_follow_the_first_are_believed_also_when_the_counter_turns_over(first: int, steps: list[int]) -> None:
    ids = RoutingIds(automatic(first))
    number = first
    for step in steps:
        number += step
        assert ids.gave(automatic(number))
        assert ids.gave(automatic(number))


@given(st.integers(0, 2**32 - 1), st.integers(SILENT_MAX + 1, 2**32))
def test_an_id_far_behind_or_before_the_first_is_a_claim(first: int, distance: int) -> None:
    assert not RoutingIds(automatic(first)).gave(automatic(first + distance))


@pytest.mark.parametrize("claimed", [b"", b"a", b"admin", b"\0abc", b"\0abcde", b"\x01abcd"])
def test_an_id_of_another_form_is_a_claim(claimed: bytes) -> None:
    assert not RoutingIds(automatic(0x61626363)).gave(claimed)


def test_a_claim_does_not_widen_what_is_believed() -> None:
    ids = RoutingIds(automatic(0))
    assert not ids.gave(automatic(SILENT_MAX * 2))
    assert not ids.gave(automatic(SILENT_MAX + 1))
    assert ids.gave(automatic(SILENT_MAX))
