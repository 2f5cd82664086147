"""Filters and the final draw, against a plain reference in Python."""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from enclaved.plugin.engine import EngineError, SampleRow, Sampling, SequenceId, Token

pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, which is not installed")
from enclave_llama_cpp.sampling import CHAINS_MAX, Sampler, drawn

SIZE = 50
PLAIN = Sampling(top_k=0, top_p=1.0, min_p=0.0, temperature=1.0)


@pytest.fixture(scope="module")
def sampler() -> Generator[Sampler]:
    sampler = Sampler(SIZE)
    yield sampler
    sampler.free()


def pick(sampler: Sampler, logits: NDArray[np.float32], sampling: Sampling, draw: float = 0.0, **row: Any) -> int:
    return sampler.choose(logits, SampleRow(SequenceId(0), sampling, draw, **row)).token


def reference(logits: list[float], sampling: Sampling, draw: float) -> int:
    """The token by the words of the contract, without a library."""
    kept = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    if sampling.top_k:
        kept = kept[: sampling.top_k]
    highest = max(logits)
    weights = {token: math.exp(logits[token] - highest) for token in kept}
    if sampling.top_p < 1:
        total, reached = sum(weights.values()), 0.0
        for count, token in enumerate(kept, start=1):
            reached += weights[token] / total
            if reached >= sampling.top_p:
                kept = kept[:count]
                break
    kept = [token for token in kept if weights[token] >= sampling.min_p]
    hot = [math.exp((logits[token] - highest) / sampling.temperature) for token in kept]
    heat, reached = sum(hot), 0.0
    for token, weight in zip(kept, hot, strict=True):
        reached += weight / heat
        if reached > draw:
            return token
    return kept[-1]


# Logits in steps of a quarter, all different, and thresholds between the steps: nothing hangs on the last bit.
_LOGITS = st.permutations([number / 4 for number in range(SIZE)])
_SAMPLINGS = st.builds(
    Sampling,
    top_k=st.sampled_from([0, 1, 3, 40]),
    top_p=st.sampled_from([0.0, 0.31, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.33]),
    temperature=st.sampled_from([0.2, 0.8, 3.0]),
)


@given(_LOGITS, _SAMPLINGS, st.sampled_from([number / 97 for number in range(97)]))
def test_filters_and_draw_are_those_of_the_contract(logits: list[float], sampling: Sampling, draw: float) -> None:
    sampler = Sampler(SIZE)
    try:
        chosen = pick(sampler, np.array(logits, dtype=np.float32), sampling, draw)
    finally:
        sampler.free()
    assert chosen == reference(logits, sampling, draw)


_WIDE: tuple[Sampling, ...] = (
    PLAIN,
    Sampling(top_k=0, top_p=1.0, min_p=0.0, temperature=0.3),
    Sampling(top_k=0, top_p=1.0, min_p=0.0, temperature=1000.0),
    Sampling(top_k=0, top_p=0.9, min_p=0.0, temperature=2.0),
    Sampling(top_k=0, top_p=1.0, min_p=0.003, temperature=1.0),
    Sampling(top_k=900, top_p=0.99, min_p=0.0, temperature=1.0),
)


@pytest.mark.parametrize("sampling", _WIDE)
def test_a_wide_vocabulary_is_drawn_from_alike(sampling: Sampling) -> None:
    """So many that they are not all sorted."""
    size = 5000
    numbers: Any = np.random.default_rng(8)
    sampler = Sampler(size)
    try:
        for spread in (0.5, 3.0):
            logits = numbers.normal(0, spread, size).astype(np.float32)
            for draw in (0.0, 0.1234, 0.5, 0.9876, 0.9999):
                expected = reference(logits.tolist(), sampling, draw)
                assert pick(sampler, logits, sampling, draw) == expected
    finally:
        sampler.free()


def test_equal_tokens_of_a_wide_vocabulary_are_ordered_by_id() -> None:
    ids = np.random.default_rng(1).permutation(2000).astype(np.int32)
    logits = np.zeros(2000, dtype=np.float32)
    assert [drawn(ids, logits, 1.0, (place + 0.5) / 2000) for place in (0, 1, 999, 1999)] == [0, 1, 999, 1999]


_ANY_LOGITS = arrays(
    np.float32, SIZE, elements=st.one_of(st.floats(-60, 60, width=32), st.sampled_from([-math.inf, 0.0, 1.0]))
).filter(lambda logits: bool(np.isfinite(logits).any()))


@given(_ANY_LOGITS, st.floats(0, 1, exclude_max=True), st.lists(st.floats(-9, 9), max_size=SIZE))
def test_greedy_is_the_argmax_of_the_biased_whatever_the_draw(
    logits: NDArray[np.float32], draw: float, biases: list[float]
) -> None:
    biased = logits.copy()
    biased[: len(biases)] += np.array(biases, dtype=np.float32)
    greedy = Sampling(temperature=0.0, logit_bias=tuple((Token(token), bias) for token, bias in enumerate(biases)))
    sampler = Sampler(SIZE)
    try:
        if np.isfinite(biased).any():
            assert pick(sampler, logits, greedy, draw) == int(np.argmax(biased))
    finally:
        sampler.free()


_ANY_SAMPLINGS = st.builds(
    Sampling,
    top_k=st.sampled_from([0, 1, 7, SIZE, 10**9]),
    typical_p=st.sampled_from([0.0, 0.5, 1.0]),
    top_p=st.floats(0, 1),
    min_p=st.floats(0, 1),
    xtc_probability=st.sampled_from([0.0, 0.5, 1.0]),
    xtc_threshold=st.floats(0, 1),
    mirostat=st.sampled_from([0, 0, 1, 2]),
    temperature=st.one_of(st.just(0.0), st.floats(1e-3, 1000)),
)


@given(_ANY_LOGITS, _ANY_SAMPLINGS, st.lists(st.floats(0, 1, exclude_max=True), min_size=2, max_size=2))
def test_the_same_row_gives_the_same_possible_token_and_a_larger_draw_none_likelier(
    logits: NDArray[np.float32], sampling: Sampling, draws: list[float]
) -> None:
    used, fresh = Sampler(SIZE), Sampler(SIZE)
    try:
        low, high = (
            used.choose(logits, SampleRow(SequenceId(0), sampling, draw, filter_draw=0.4)) for draw in sorted(draws)
        )
        again = fresh.choose(logits, SampleRow(SequenceId(1), sampling, min(draws), filter_draw=0.4))
    finally:
        used.free()
        fresh.free()
    assert again == low
    assert np.isfinite(logits[[low.token, high.token]]).all()
    assert (-logits[low.token], low.token) <= (-logits[high.token], high.token)


def test_greedy_takes_the_lowest_id_among_equals(sampler: Sampler) -> None:
    logits = np.zeros(SIZE, dtype=np.float32)
    logits[[7, 30]] = 5
    assert pick(sampler, logits, Sampling(temperature=0), 0.99) == 7


def test_equal_tokens_are_ordered_by_id() -> None:
    ids = np.array([9, 4, 2, 7], dtype=np.int32)
    logits = np.array([1, 1, 1, 1], dtype=np.float32)
    assert [drawn(ids, logits, 1.0, draw) for draw in (0.0, 0.24, 0.25, 0.5, 0.75, 0.999)] == [2, 2, 4, 7, 9, 9]


def test_a_draw_next_to_one_never_takes_an_impossible_token() -> None:
    ids = np.arange(3, dtype=np.int32)
    logits = np.array([0, -np.inf, -np.inf], dtype=np.float32)
    assert drawn(ids, logits, 1.0, math.nextafter(1.0, 0.0)) == 0


@pytest.mark.parametrize("temperature", [5e-324, 1e-9, 1e300])
def test_no_temperature_breaks_the_draw(sampler: Sampler, temperature: float) -> None:
    logits = np.linspace(-30, 30, SIZE, dtype=np.float32)
    chosen = pick(sampler, logits, Sampling(temperature=temperature), 0.0)
    assert chosen == SIZE - 1


def test_the_share_of_draws_is_the_probability(sampler: Sampler) -> None:
    logits = np.full(SIZE, -np.inf, dtype=np.float32)
    logits[3], logits[5] = math.log(3), 0.0
    chosen = [pick(sampler, logits, PLAIN, number / 1000) for number in range(1000)]
    assert (chosen.count(3), chosen.count(5)) == pytest.approx((750, 250), abs=1)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_logits_that_are_no_numbers_are_an_error(sampler: Sampler, broken: float, temperature: float) -> None:
    logits = np.zeros(SIZE, dtype=np.float32)
    logits[20] = broken
    with pytest.raises(EngineError, match="not finite"):
        pick(sampler, logits, Sampling(temperature=temperature), 0.5)


def test_many_settings_do_not_pile_up_chains(sampler: Sampler) -> None:
    logits = np.arange(SIZE, dtype=np.float32)
    for number in range(3 * CHAINS_MAX):
        assert pick(sampler, logits, Sampling(top_k=1, top_p=0.5 + number / 1000), 0.5) == SIZE - 1
