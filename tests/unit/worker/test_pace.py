"""What steps took becomes what the next will take."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclaved.worker.pace import SMALL_CHUNK_COST, Pace


def test_nothing_is_known_before_the_first_measurement() -> None:
    pace = Pace(64)
    assert not pace.is_known
    assert (pace.decode_seconds, pace.chunk_seconds(64), pace.chunk_seconds(8)) == (0, 0, 0)


def test_a_chunk_takes_as_long_as_the_last_did() -> None:
    pace = Pace(64)
    pace.evaluated(128, 0.5)
    assert pace.chunk_seconds(64) == pytest.approx(0.25)
    assert pace.chunk_seconds(32) == pytest.approx(0.125 * SMALL_CHUNK_COST)
    pace.evaluated(32, 0.125)
    assert pace.chunk_seconds(16) == pytest.approx(0.0625)
    assert pace.chunk_seconds(64) == pytest.approx(0.25)


def test_a_handful_of_tokens_says_nothing_of_a_chunk() -> None:
    pace = Pace(64)
    pace.evaluated(3, 1.0)
    assert not pace.is_known


@given(st.lists(st.floats(1e-6, 10), min_size=1, max_size=30))
def test_an_estimate_lies_between_the_measurements(seconds: list[float]) -> None:
    pace = Pace(64)
    for each in seconds:
        pace.decoded(each)
        pace.evaluated(64, each)
    tolerance = 1e-9 * max(seconds)
    for estimate in (pace.decode_seconds, pace.chunk_seconds(64)):
        assert min(seconds) - tolerance <= estimate <= max(seconds) + tolerance


def test_a_machine_that_became_slower_is_noticed() -> None:
    pace = Pace(64)
    pace.evaluated(64, 0.1)
    for _ in range(6):
        pace.evaluated(64, 1.0)
    assert pace.chunk_seconds(64) > 0.95
