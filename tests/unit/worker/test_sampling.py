"""The final draw depends on nothing but its three numbers, and is spread evenly."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave.protocol.bodies import Sampling as AskedSampling
from enclave.protocol.bodies import TokenBias
from enclave.protocol.errors import RemoteProtocolError
from enclaved.plugin.engine import Sampling
from enclaved.worker.sampling import FILTER_STREAM, draws, sampling_of

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
    assert sampling_of(AskedSampling(), 10) == Sampling()


def test_what_was_asked_for_is_taken_also_when_it_is_zero() -> None:
    asked = AskedSampling(temperature=0.0, top_k=0, top_p=0.0, min_p=0.0)
    assert sampling_of(asked, 10) == Sampling(top_k=0, top_p=0.0, min_p=0.0, temperature=0.0)


def test_every_parameter_of_the_engine_can_be_asked_for() -> None:
    """By the same name; a new one that the protocol doesn't know would never be set."""
    names = {field.name for field in dataclasses.fields(Sampling)}
    assert names <= {field.name for field in dataclasses.fields(cast("Any", AskedSampling))}
    asked = AskedSampling(xtc_probability=0.5, dry_breakers=("x",), mirostat=2, penalty_last_n=-1)
    assert sampling_of(asked, 10) == Sampling(xtc_probability=0.5, dry_breakers=("x",), mirostat=2, penalty_last_n=-1)


def test_a_bias_without_a_number_forbids_its_token() -> None:
    asked = AskedSampling(logit_bias=(TokenBias(token=3), TokenBias(token=9, bias=-1.5)))
    assert sampling_of(asked, 10).logit_bias == ((3, float("-inf")), (9, -1.5))


def test_a_bias_on_a_token_outside_the_vocabulary_is_refused_by_name() -> None:
    asked = AskedSampling(logit_bias=(TokenBias(token=3), TokenBias(token=10)))
    with pytest.raises(RemoteProtocolError, match="token 10") as refused:
        sampling_of(asked, 10)
    assert refused.value.field == "logit_bias[1].token"


def test_the_filters_draw_apart_from_the_final_draw() -> None:
    assert draws(1, 0, FILTER_STREAM)(5) != draws(1, 0)(5)
    assert draws(1, 0, FILTER_STREAM)(5) == draws(1, 0, FILTER_STREAM)(5)
