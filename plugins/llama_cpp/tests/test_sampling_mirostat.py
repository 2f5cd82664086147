"""Mirostat without a state of its own, against its authors' formulas and against llama.cpp's samplers."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from enclaved.plugin.engine import SampleRow, Sampling, SequenceId

pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, which is not installed")
import llama_cpp as typed_llama_cpp

from enclave_llama_cpp.candidates import CANDIDATE, applied
from enclave_llama_cpp.sampling import Sampler
from enclave_llama_cpp.sampling_mirostat import ESTIMATED_FROM, truncated

llama_cpp = cast("Any", typed_llama_cpp)

SIZE = 40
DRAWS = [number / 211 for number in range(211)]
LOGITS = st.permutations([number / 4 for number in range(SIZE)]).map(lambda each: np.array(each, dtype=np.float32))


def surprises(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    weights = np.exp(logits.astype(np.float64) - float(logits.max()))
    return -np.log2(weights / weights.sum())


@given(LOGITS, st.floats(0.1, 8), st.sampled_from(DRAWS))
def test_version_2_keeps_what_surprises_no_more_than_its_state_and_steers_it(
    logits: NDArray[np.float32], mu: float, draw: float
) -> None:
    """Basu et al.: Mirostat, 2021, the second version as its authors published it."""
    surprise = surprises(logits)
    if np.any(np.abs(surprise - mu) < 1e-3):
        return
    left = [token for token in np.argsort(surprise).tolist() if surprise[token] <= mu] or [int(np.argmin(surprise))]
    weights = 2.0 ** -surprise[left]
    weights /= weights.sum()
    sampling = Sampling(temperature=1.0, mirostat=2, mirostat_tau=3.0, mirostat_eta=0.2)
    sampler = Sampler(SIZE)
    try:
        sampled = sampler.choose(logits, SampleRow(SequenceId(0), sampling, draw, mirostat_mu=mu))
    finally:
        sampler.free()
    assert sampled.token in left
    place = left.index(sampled.token)
    assert weights[:place].sum() <= draw + 1e-4
    assert weights[: place + 1].sum() >= draw - 1e-4
    assert sampled.mirostat_mu == pytest.approx(mu - 0.2 * (-math.log2(weights[place]) - 3.0), abs=1e-3)


def left_by_llama_cpp(logits: NDArray[np.float32], version: int, mu: float) -> set[int]:
    """Its state begins with twice its tau."""
    if version == 1:
        sampler = llama_cpp.llama_sampler_init_mirostat(len(logits), 0, mu / 2, 0.1, ESTIMATED_FROM)
    else:
        sampler = llama_cpp.llama_sampler_init_mirostat_v2(0, mu / 2, 0.1)
    candidates = np.zeros(len(logits), dtype=CANDIDATE)
    candidates["id"], candidates["logit"] = np.arange(len(logits)), logits
    left: Any = applied(sampler, candidates)["id"]
    llama_cpp.llama_sampler_free(sampler)
    return set(left.tolist())


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("size", [12, 60, 3000])
def test_what_is_left_is_what_llama_cpp_leaves(version: int, size: int) -> None:
    numbers: Any = np.random.default_rng(size)
    counts: set[int] = set()
    for mu in (0.5, 2.0, 4.0, 5.5, 7.0, 9.0):
        for spread in (0.3, 1.0, 2.0, 5.0):
            logits = numbers.normal(0, spread, size).astype(np.float32)
            left = set(truncated(logits, version, mu, size).tolist())
            assert left == left_by_llama_cpp(logits, version, mu), (mu, spread)
            counts.add(len(left))
    assert len(counts) > 5


@pytest.mark.parametrize("version", [1, 2])
def test_it_comes_near_the_surprise_that_it_aims_at(version: int) -> None:
    numbers: Any = np.random.default_rng(1)
    sampler, size, mu = Sampler(2000), 2000, None
    sampling = Sampling(temperature=1.0, mirostat=version, mirostat_tau=4.0, mirostat_eta=0.1)
    told: list[float] = []
    try:
        for _ in range(600):
            logits = (-1.3 * np.log(np.arange(1, size + 1)) + numbers.normal(0, 0.1, size)).astype(np.float32)
            asked = SampleRow(SequenceId(0), sampling, float(numbers.random()), mirostat_mu=mu, logprobs=0)
            sampled = sampler.choose(logits, asked)
            assert sampled.logprob is not None
            mu = sampled.mirostat_mu
            told.append(-sampled.logprob / math.log(2))
    finally:
        sampler.free()
    assert np.mean(told[200:]) == pytest.approx(4.0, abs=1.2)


@pytest.mark.parametrize("mu", [-1e300, -1.0, 0.0, 5.0, 1e300])
@pytest.mark.parametrize("version", [1, 2])
def test_no_state_and_no_distribution_leaves_nothing(version: int, mu: float) -> None:
    flat, zipf = np.zeros(50, dtype=np.float32), -np.log(np.arange(1, 51)).astype(np.float32)
    for logits in (flat, zipf, flat[:1], np.array([0.0, -79.0], dtype=np.float32)):
        left = truncated(logits, version, mu, 50)
        assert len(left) >= 1
        if mu < 0:
            assert left.tolist() == [0]
        if mu > 100:
            assert len(left) == len(logits)


def test_temperature_comes_before_it() -> None:
    logits = np.linspace(0, 3, SIZE, dtype=np.float32)
    sampler = Sampler(SIZE)

    def told(temperature: float) -> set[int]:
        sampling = Sampling(temperature=temperature, mirostat=2)
        return {
            sampler.choose(logits, SampleRow(SequenceId(0), sampling, draw, mirostat_mu=4.5)).token for draw in DRAWS
        }

    try:
        cold, warm = told(0.25), told(0.8)
    finally:
        sampler.free()
    assert cold == {token for token in range(SIZE) if surprises(logits * np.float32(4))[token] <= 4.5}
    assert warm == {token for token in range(SIZE) if surprises(logits / np.float32(0.8))[token] <= 4.5}
    assert cold != warm
