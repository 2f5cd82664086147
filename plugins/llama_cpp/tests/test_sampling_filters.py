"""What the filters keep, against the formulas of their papers and against llama.cpp's samplers on their own."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from enclaved.plugin.engine import EngineError, SampleRow, Sampling, SequenceId, Token

pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, which is not installed")
import llama_cpp as typed_llama_cpp

from enclave_llama_cpp.candidates import CANDIDATE, applied
from enclave_llama_cpp.sampling import Sampler

llama_cpp = cast("Any", typed_llama_cpp)

SIZE = 40
CELLS = 64
OPEN: dict[str, Any] = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 1.0}
PLAIN = Sampling(**OPEN)
DRAWS = [number / 211 for number in range(211)]
LOGITS = st.permutations([number / 4 for number in range(SIZE)]).map(lambda each: np.array(each, dtype=np.float32))


@pytest.fixture(scope="module")
def sampler() -> Generator[Sampler]:
    sampler = Sampler(SIZE, None, CELLS)
    yield sampler
    sampler.free()


def row(sampling: Sampling, draw: float = 0.0, **fields: Any) -> SampleRow:
    return SampleRow(SequenceId(0), sampling, draw, **fields)


def kept(sampler: Sampler, logits: NDArray[np.float32], sampling: Sampling, **fields: Any) -> set[int]:
    """Every token that some draw falls on: with equal weights, all that the filters left."""
    flat = replace(sampling, temperature=1e9)
    return {sampler.choose(logits, row(flat, draw, **fields)).token for draw in DRAWS}


def probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    weights = np.exp(logits.astype(np.float64) - float(logits.max()))
    return weights / weights.sum()


@given(LOGITS, st.sampled_from([0.0, 0.13, 0.5, 0.93, 0.999]), st.sampled_from([0, 7]))
def test_top_p_keeps_the_likeliest_that_together_make_up_its_share(
    logits: NDArray[np.float32], top_p: float, top_k: int
) -> None:
    """Holtzman et al.: The Curious Case of Neural Text Degeneration, 2020; here of what top-k left."""
    order = np.argsort(-logits)[: top_k or None]
    p = probabilities(logits[order])
    count = int(np.searchsorted(np.cumsum(p), top_p)) + 1
    sampler = Sampler(SIZE)
    try:
        found = kept(sampler, logits, replace(PLAIN, top_p=top_p, top_k=top_k))
    finally:
        sampler.free()
    assert found == set(order[:count].tolist())


@pytest.mark.parametrize("top_k", [0, 20])
def test_top_p_is_content_when_its_share_is_just_reached(sampler: Sampler, top_k: int) -> None:
    logits = np.full(SIZE, -np.inf, dtype=np.float32)
    logits[[3, 7, 9]] = math.log(2), 0.0, 0.0
    assert kept(sampler, logits, replace(PLAIN, top_p=0.5, top_k=top_k)) == {3}


@given(LOGITS, st.sampled_from([0.03, 0.4, 1.0]), st.sampled_from([0, 5]))
def test_min_p_keeps_what_is_at_least_its_share_of_the_likeliest(
    logits: NDArray[np.float32], min_p: float, top_k: int
) -> None:
    """Nguyen et al.: Turning Up the Heat: Min-p Sampling, 2024."""
    p = probabilities(logits)
    largest = np.argsort(-p)[: top_k or None].tolist()
    sampler = Sampler(SIZE)
    try:
        found = kept(sampler, logits, replace(PLAIN, min_p=min_p, top_k=top_k))
    finally:
        sampler.free()
    assert found == {token for token in largest if p[token] >= min_p * p.max() * (1 - 1e-6)}


@given(LOGITS, st.sampled_from([0.2, 0.63, 0.97]), st.sampled_from([0, 9]))
def test_typical_keeps_the_tokens_whose_surprise_is_nearest_to_the_entropy(
    logits: NDArray[np.float32], typical_p: float, top_k: int
) -> None:
    """Meister et al.: Locally Typical Sampling, 2022."""
    among = np.argsort(-logits)[: top_k or None]
    p = probabilities(logits[among])
    distance = np.abs(-np.log(p) + (p * np.log(p)).sum())
    order = np.argsort(distance)
    count = int(np.searchsorted(np.cumsum(p[order]), typical_p)) + 1
    sampler = Sampler(SIZE)
    try:
        found = kept(sampler, logits, replace(PLAIN, top_k=top_k, typical_p=typical_p))
    finally:
        sampler.free()
    assert found == set(among[order[:count]].tolist())


@pytest.mark.parametrize("top_k", [0, 20])
def test_typical_is_not_led_astray_by_impossible_tokens(sampler: Sampler, top_k: int) -> None:
    logits = np.full(SIZE, -np.inf, dtype=np.float32)
    logits[[3, 7, 9]] = [2.0, 1.5, -200.0]
    assert kept(sampler, logits, replace(PLAIN, top_k=top_k, typical_p=0.99)) == {3, 7}


@given(LOGITS, st.sampled_from([0.02, 0.1, 0.3]), st.sampled_from([0.3, 0.99]))
def test_xtc_leaves_out_all_but_the_last_of_the_likeliest_when_its_draw_says_so(
    logits: NDArray[np.float32], threshold: float, filter_draw: float
) -> None:
    p = probabilities(logits)
    above = [token for token in np.argsort(-p).tolist() if p[token] >= threshold]
    expected = set(range(SIZE)) - set(above[:-1] if filter_draw < 0.5 else [])
    sampling = Sampling(**OPEN, xtc_probability=0.5, xtc_threshold=threshold)
    sampler = Sampler(SIZE)
    try:
        assert kept(sampler, logits, sampling, filter_draw=filter_draw) == expected
    finally:
        sampler.free()


@pytest.mark.parametrize(("probability", "filter_draw", "applies"), [(0.0, 0.0, False), (1.0, 0.999, True)])
def test_xtc_never_or_always(sampler: Sampler, probability: float, filter_draw: float, applies: bool) -> None:
    logits = np.full(SIZE, -np.inf, dtype=np.float32)
    logits[[4, 8]] = 0.0, -0.1
    sampling = Sampling(**OPEN, xtc_probability=probability)
    assert kept(sampler, logits, sampling, filter_draw=filter_draw) == ({8} if applies else {4, 8})


def test_xtc_with_a_threshold_above_a_half_leaves_nothing_out(sampler: Sampler) -> None:
    logits = np.full(SIZE, -np.inf, dtype=np.float32)
    logits[[4, 8]] = 2.0, 0.0
    assert kept(sampler, logits, Sampling(**OPEN, xtc_probability=1.0, xtc_threshold=0.51)) == {4, 8}


def left_by_llama_cpp(
    pointer: Any, logits: NDArray[np.float32], sampling: Sampling, history: Sequence[Token]
) -> list[int]:
    """The tokens that llama.cpp's samplers leave of all, each with its own settings; likeliest first. XTC always
    applies."""
    size = len(logits)
    no_texts = ctypes.cast((ctypes.c_char_p * 0)(), ctypes.POINTER(ctypes.c_char_p))
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    for each in (
        llama_cpp.llama_sampler_init_penalties(
            size,
            CELLS if sampling.penalty_last_n < 0 else sampling.penalty_last_n,
            sampling.repeat_penalty,
            sampling.frequency_penalty,
            sampling.presence_penalty,
        ),
        llama_cpp.llama_sampler_init_dry(
            pointer, sampling.dry_multiplier, sampling.dry_base, sampling.dry_allowed_length, CELLS, no_texts, 0
        ),
        llama_cpp.llama_sampler_init_top_k(sampling.top_k),
        llama_cpp.llama_sampler_init_typical(sampling.typical_p, 1),
        llama_cpp.llama_sampler_init_top_p(sampling.top_p, 1),
        llama_cpp.llama_sampler_init_min_p(sampling.min_p, 1),
        llama_cpp.llama_sampler_init_xtc(sampling.xtc_probability, sampling.xtc_threshold, 1, 0),
    ):
        llama_cpp.llama_sampler_chain_add(chain, each)
    for token in history:
        llama_cpp.llama_sampler_accept(chain, token)
    candidates = np.zeros(size, dtype=CANDIDATE)
    candidates["id"], candidates["logit"] = np.arange(size), logits
    left: Any = applied(chain, candidates)
    llama_cpp.llama_sampler_free(chain)
    return left["id"][np.lexsort((left["id"], -left["logit"]))].tolist()


_WAYS: Sequence[dict[str, Any]] = (
    {},
    {"top_k": 40, "top_p": 0.95, "min_p": 0.05},
    {"top_k": 200, "typical_p": 0.9},
    {"top_k": 30, "typical_p": 0.8, "top_p": 0.7, "min_p": 0.01, "xtc_probability": 1.0, "xtc_threshold": 0.03},
    {"top_p": 0.9},
    {"top_p": 0.8, "min_p": 0.1},
    {"min_p": 0.07},
    {"min_p": 0.02, "xtc_probability": 1.0, "xtc_threshold": 0.05},
    {"typical_p": 0.6},
    {"typical_p": 0.9, "top_p": 0.6},
    {"typical_p": 0.9, "top_p": 0.9, "min_p": 0.03, "xtc_probability": 1.0, "xtc_threshold": 0.01},
    {"xtc_probability": 1.0, "xtc_threshold": 0.04},
)
_PASTS: Sequence[dict[str, Any]] = (
    {},
    {"repeat_penalty": 1.3, "presence_penalty": 0.3, "penalty_last_n": 9},
    {"dry_multiplier": 1.2, "dry_allowed_length": 1, "dry_breakers": ()},
    {"frequency_penalty": 0.2, "penalty_last_n": -1, "dry_multiplier": 2.0, "dry_breakers": ()},
)


@pytest.mark.parametrize("way", _WAYS, ids=lambda way: "-".join(way) or "all off")
@pytest.mark.parametrize("past", _PASTS, ids=lambda past: "-".join(past) or "no past")
@pytest.mark.parametrize("wide", [False, True], ids=["tiny", "wide"])
def test_set_and_order_are_those_of_llama_cpps_own_chain(
    vocabulary: Any, way: dict[str, Any], past: dict[str, Any], wide: bool
) -> None:
    """Penalties, DRY, top-k, typical, top-p, min-p, XTC. `wide`: more tokens than the vocabulary that DRY has its
    breakers from, of which there are none."""
    pointer, vocabulary_size = vocabulary
    size: int = 4000 if wide else vocabulary_size
    numbers: Any = np.random.default_rng(11)
    settings_of_all: dict[str, Any] = {**way, **past, "temperature": 1e9}
    sampling = replace(PLAIN, **settings_of_all)
    sampler = Sampler(size, pointer, CELLS)
    try:
        for spread in (0.5, 2.0, 6.0):
            logits = numbers.normal(0, spread, size).astype(np.float32)
            history = [Token(int(token)) for token in numbers.integers(0, 6, 50)]
            logits[:6] += 2 * spread
            expected = left_by_llama_cpp(pointer, logits, sampling, history)
            # As flat as this, each of those left has an equal part of the draws.
            for place in sorted({*range(0, len(expected), max(1, len(expected) // 40)), len(expected) - 1}):
                asked = row(sampling, (place + 0.5) / len(expected), history=history, filter_draw=0.7)
                assert sampler.choose(logits, asked).token == expected[place]
    finally:
        sampler.free()


def test_a_bias_moves_and_minus_infinity_forbids(sampler: Sampler) -> None:
    logits = np.linspace(0, 3, SIZE, dtype=np.float32)
    before = logits.copy()
    forbidden = tuple((Token(token), -math.inf) for token in range(5, SIZE))
    assert kept(sampler, logits, Sampling(**OPEN, logit_bias=forbidden)) == set(range(5))
    greedy = Sampling(temperature=0.0, logit_bias=((Token(4), 10.0),))
    assert sampler.choose(logits, row(greedy)).token == 4
    twice = Sampling(temperature=0.0, logit_bias=((Token(4), 2.0), (Token(4), 2.0)))
    assert sampler.choose(logits, row(twice)).token == 4
    assert (logits == before).all()


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("mirostat", [0, 1, 2])
def test_when_every_token_is_forbidden_that_is_an_error(sampler: Sampler, temperature: float, mirostat: int) -> None:
    everything = tuple((Token(token), -math.inf) for token in range(SIZE))
    sampling = Sampling(temperature=temperature, mirostat=mirostat, logit_bias=everything)
    with pytest.raises(EngineError, match="forbids every token"):
        sampler.choose(np.zeros(SIZE, dtype=np.float32), row(sampling))


@pytest.mark.parametrize("wrong", [-1, SIZE, 2**40])
def test_a_bias_for_what_is_no_token_is_an_error(sampler: Sampler, wrong: int) -> None:
    with pytest.raises(EngineError, match="outside the vocabulary"):
        sampler.choose(np.zeros(SIZE, dtype=np.float32), row(Sampling(logit_bias=((Token(wrong), 1.0),))))


_EXTREMES: Sequence[Sampling] = (
    Sampling(**OPEN, typical_p=0.0),
    Sampling(**OPEN, xtc_probability=1.0, xtc_threshold=0.0),
    Sampling(**OPEN, mirostat=1, mirostat_tau=0.0, mirostat_eta=1.0),
    Sampling(**OPEN, mirostat=2, mirostat_tau=0.0, mirostat_eta=1.0),
    Sampling(**OPEN, repeat_penalty=0.01, penalty_last_n=2**20),
    Sampling(**OPEN, repeat_penalty=100.0, frequency_penalty=-100.0, presence_penalty=100.0),
    Sampling(top_k=2**63 - 1, top_p=0.0, min_p=1.0, typical_p=0.0, temperature=1000.0),
    Sampling(top_k=SIZE, top_p=0.0, temperature=1e-300),
    replace(PLAIN, top_p=0.0, temperature=1000.0),
    replace(PLAIN, min_p=1e-300),
)


@pytest.mark.parametrize("sampling", _EXTREMES)
@pytest.mark.parametrize("size", [1, SIZE, 3000])
def test_no_settings_leave_nothing_to_draw_from(sampling: Sampling, size: int) -> None:
    sampler = Sampler(size, None, CELLS)
    one = np.full(size, -np.inf, dtype=np.float32)
    one[size // 2] = 1.0
    try:
        for logits in (one, np.zeros(size, dtype=np.float32), np.linspace(-1e30, 1e30, size, dtype=np.float32)):
            for mu in (None, -50.0, 50.0):
                for draw in (0.0, 0.5, math.nextafter(1, 0)):
                    asked = row(sampling, draw, history=[Token(0)] * 9, mirostat_mu=mu)
                    sampled = sampler.choose(logits, asked)
                    assert np.isfinite(logits[sampled.token])
    finally:
        sampler.free()
