"""A file that somebody still writes is not offered, and one that is whole is offered soon."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclaved.daemon.catalog.arrivals import FRESH_SECONDS, QUIET_SECONDS, Arrival, HeaderState, Verdict, verdict

HEADERS = st.sampled_from(get_args(HeaderState))


@given(st.floats(-1e9, 1e9), HEADERS)
def test_what_is_being_written_waits_for_its_writer(age: float, header: HeaderState) -> None:
    assert verdict(Arrival(True, age, header)) == Verdict(False)


@given(st.sampled_from([False, None]), st.floats(-1e9, 1e9))
def test_what_is_cut_off_is_never_offered(is_being_written: bool | None, age: float) -> None:
    assert not verdict(Arrival(is_being_written, age, "cut off")).is_offered


@given(st.sampled_from([False, None]), st.floats(-1e9, 1e9), HEADERS)
def test_time_alone_brings_whatever_is_not_cut_off(
    is_being_written: bool | None, age: float, header: HeaderState
) -> None:
    if header == "cut off":
        return
    for _ in range(3):
        said = verdict(Arrival(is_being_written, age, header))
        if said.is_offered:
            return
        assert said.again_seconds is not None
        assert 0 < said.again_seconds <= FRESH_SECONDS
        age += said.again_seconds + 1e-6
    pytest.fail("it is never offered")


@pytest.mark.parametrize(
    ("arrival", "expected"),
    [
        (Arrival(False, 0.0, "read"), True),
        (Arrival(False, 0.0, "none"), True),
        (Arrival(False, 0.0, "unread"), False),
        (Arrival(False, FRESH_SECONDS, "unread"), True),
        (Arrival(False, 1.0, "refused"), False),
        (Arrival(False, FRESH_SECONDS, "refused"), True),
        (Arrival(None, QUIET_SECONDS / 2, "read"), False),
        (Arrival(None, QUIET_SECONDS, "read"), True),
        (Arrival(None, -5.0, "unread"), True),
    ],
)
def test_examples(arrival: Arrival, expected: bool) -> None:
    assert verdict(arrival).is_offered is expected
