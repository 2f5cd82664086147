"""The final draw depends on nothing but its three numbers, and is spread evenly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave.protocol.bodies import Sampling as AskedSampling
from enclaved.plugin.engine import Sampling
from enclaved.worker.sampling import draws, sampling_of

SEEDS = st.integers(0, 2**64 - 1)
POSITIONS = st.integers(0, 2**31)


@given(SEEDS, st.integers(0, 127), POSITIONS)
def test_a_draw_is_at_least_0_and_below_1(seed: int, choice: int, position: int) -> None:
    assert 0 <= draws(seed, choice)(position) < 1


@given(SEEDS, st.integers(0, 127), POSITIONS)
def test_the_same_numbers_draw_the_same(seed: int, choice: int, position: int) -> None:
    assert draws(seed, choice)(position) == draws(seed, choice)(position)


@given(SEEDS, POSITIONS)
def test_choices_positions_and_seeds_draw_differently(seed: int, position: int) -> None:
    drawn = {draws(seed, choice)(position + offset) for choice in range(8) for offset in range(8)}
    drawn |= {draws(seed ^ 1, 0)(position)}
    assert len(drawn) == 65


def test_choice_and_position_do_not_cancel_out() -> None:
    assert draws(1, 2)(3) != draws(1, 3)(2)
    assert draws(0, 0)(0) not in (draws(0, 1)(1), draws(1, 1)(0), draws(1, 0)(1))


@pytest.mark.parametrize("changing", [0, 1, 2])
def test_draws_are_spread_evenly(changing: int) -> None:
    count, parts = 10_000, 20
    buckets = [0] * parts
    for number in range(count):
        seed, choice, position = (number if place == changing else 7 for place in range(3))
        buckets[int(draws(seed, choice)(position) * parts)] += 1
    expected = count / parts
    chi_squared = sum((bucket - expected) ** 2 / expected for bucket in buckets)
    assert chi_squared < 43.8, "above what 19 degrees of freedom give once in a thousand times"


def test_the_values_are_what_they_have_always_been() -> None:
    """A seed means the same text in every version; these were computed by hand from the finaliser's definition."""
    assert draws(0, 0)(0) == _reference(0, 0, 0)
    assert draws(123, 4)(56) == _reference(123, 4, 56)


def _reference(seed: int, choice: int, position: int) -> float:
    state = seed
    for more in (choice, position, 0):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
        state = (state ^ state >> 31) ^ more
    return (state >> 11) / 2**53


def test_what_was_not_asked_for_has_the_built_in_value() -> None:
    assert sampling_of(AskedSampling()) == Sampling()


def test_what_was_asked_for_is_taken_also_when_it_is_zero() -> None:
    asked = AskedSampling(temperature=0.0, top_k=0, top_p=0.0, min_p=0.0)
    assert sampling_of(asked) == Sampling(top_k=0, top_p=0.0, min_p=0.0, temperature=0.0)
