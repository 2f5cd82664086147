"""Log probabilities are the model's own, whatever is filtered afterwards."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from enclaved.plugin.engine import SampleRow, Sampling, SequenceId, Token

pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, which is not installed")
from enclave_llama_cpp.logprobs import likeliest, log_normaliser
from enclave_llama_cpp.sampling import Sampler

SIZE = 40
LOGITS = st.permutations([number / 4 for number in range(SIZE)]).map(lambda each: np.array(each, dtype=np.float32))
CHANGING = Sampling(
    top_k=3,
    temperature=0.1,
    mirostat=2,
    repeat_penalty=1.5,
    logit_bias=((Token(3), 5.0), (Token(5), -math.inf)),
)


@given(LOGITS, st.integers(0, SIZE + 5), st.sampled_from([Sampling(top_k=3, temperature=0.1), CHANGING]))
def test_they_are_those_of_the_model_before_all_filters(
    logits: NDArray[np.float32], count: int, sampling: Sampling
) -> None:
    exact = logits.astype(np.float64)
    logprobs = exact - math.log(np.exp(exact).sum())
    sampler = Sampler(SIZE, None, 8)
    try:
        asked = SampleRow(SequenceId(0), sampling, 0.9, history=[Token(7)], logprobs=count)
        sampled = sampler.choose(logits, asked)
    finally:
        sampler.free()
    assert sampled.logprob == pytest.approx(logprobs[sampled.token], abs=1e-4)
    order = np.argsort(-logprobs)[:count].tolist()
    assert [token for token, _ in sampled.top] == order
    assert [logprob for _, logprob in sampled.top] == pytest.approx(logprobs[order].tolist(), abs=1e-4)


def test_none_are_told_unasked() -> None:
    sampler = Sampler(SIZE)
    try:
        sampled = sampler.choose(np.zeros(SIZE, dtype=np.float32), SampleRow(SequenceId(0), Sampling(), 0.5))
    finally:
        sampler.free()
    assert sampled.logprob is None
    assert sampled.top == ()


@given(arrays(np.float32, 700, elements=st.sampled_from([-math.inf, -2.0, 0.0, 1.0, 3.0])), st.integers(0, 710))
def test_the_likeliest_of_equals_are_those_with_the_lowest_ids(logits: NDArray[np.float32], count: int) -> None:
    numbered: list[tuple[int, float]] = [(token, float(logit)) for token, logit in enumerate(logits)]
    expected = sorted(numbered, key=lambda item: (-item[1], item[0]))[:count]
    assert likeliest(logits, count) == [token for token, _ in expected]


def test_the_normaliser_is_that_of_exact_sums() -> None:
    logits = np.random.default_rng(0).normal(0, 3, 128_000).astype(np.float32)
    exact = math.log(math.fsum(math.exp(logit) for logit in logits.tolist()))
    assert log_normaliser(logits) == pytest.approx(exact, abs=1e-6)
    assert log_normaliser(np.array([5.0, -np.inf], dtype=np.float32)) == pytest.approx(5.0)
    assert log_normaliser(np.array([3e38, -3e38], dtype=np.float32)) == pytest.approx(3e38)
