"""Filters and the final draw, against a plain reference in Python."""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from enclaved.plugin.engine import EngineError, SampleRow, Sampling, SequenceId

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
    weights = {token: math.exp(logits[token] - max(logits)) for token in kept}
    if sampling.top_p < 1:
        total, reached = sum(weights.values()), 0.0
        for count, token in enumerate(kept, start=1):
            reached += weights[token] / total
            if reached >= sampling.top_p:
                kept = kept[:count]
                break
    kept = [token for token in kept if weights[token] >= sampling.min_p]
    hot = [math.exp((logits[token] - max(logits)) / sampling.temperature) for token in kept]
    reached = 0.0
    for token, weight in zip(kept, hot, strict=True):
        reached += weight / sum(hot)
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


@settings(deadline=None)
@given(_LOGITS, _SAMPLINGS, st.sampled_from([number / 97 for number in range(97)]))
def test_filters_and_draw_are_those_of_the_contract(logits: list[float], sampling: Sampling, draw: float) -> None:
    sampler = Sampler(SIZE)
    try:
        chosen = pick(sampler, np.array(logits, dtype=np.float32), sampling, draw)
    finally:
        sampler.free()
    assert chosen == reference(logits, sampling, draw)


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
