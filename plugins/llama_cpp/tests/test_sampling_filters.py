"""What the further filters keep, against the formulas of their papers and against llama.cpp's samplers on their own."""

from __future__ import annotations

import ctypes
import math
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from enclaved.plugin.engine import EngineError, SampleRow, Sampling, SequenceId, Token
from plugins.llama_cpp.tests.tiny_gguf import tiny_llama

pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, which is not installed")
import llama_cpp as typed_llama_cpp

from enclave_llama_cpp.candidates import CANDIDATE, applied
from enclave_llama_cpp.logprobs import likeliest, log_normaliser
from enclave_llama_cpp.sampling import Sampler

llama_cpp = cast("Any", typed_llama_cpp)

SIZE = 40
CELLS = 64
OPEN: dict[str, Any] = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 1.0}
DRAWS = [number / 211 for number in range(211)]
LOGITS = st.permutations([number / 4 for number in range(SIZE)]).map(lambda each: np.array(each, dtype=np.float32))
HISTORIES = st.lists(st.integers(0, SIZE - 1).map(Token), max_size=CELLS)


@pytest.fixture(scope="module")
def sampler() -> Generator[Sampler]:
    sampler = Sampler(SIZE, None, CELLS)
    yield sampler
    sampler.free()


def row(sampling: Sampling, draw: float = 0.0, **fields: Any) -> SampleRow:
    return SampleRow(SequenceId(fields.pop("sequence", 0)), sampling, draw, **fields)


def kept(sampler: Sampler, logits: NDArray[np.float32], sampling: Sampling, **fields: Any) -> set[int]:
    """Every token that some draw falls on: with equal weights, all that the filters left."""
    flat = replace(sampling, temperature=1e9)
    return {sampler.choose(logits, row(flat, draw, **fields)).token for draw in DRAWS}


def probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    weights = np.exp(logits.astype(np.float64) - float(logits.max()))
    return weights / weights.sum()


@given(LOGITS, st.sampled_from([0.2, 0.63, 0.97]))
@settings(deadline=None)
def test_typical_keeps_the_tokens_whose_surprise_is_nearest_to_the_entropy(
    logits: NDArray[np.float32], typical_p: float
) -> None:
    """Meister et al.: Locally Typical Sampling, 2022."""
    p = probabilities(logits)
    distance = np.abs(-np.log(p) + (p * np.log(p)).sum())
    order = np.argsort(distance)
    count = int(np.searchsorted(np.cumsum(p[order]), typical_p)) + 1
    sampler = Sampler(SIZE)
    try:
        found = kept(sampler, logits, Sampling(**OPEN, typical_p=typical_p))
    finally:
        sampler.free()
    assert found == set(order[:count].tolist())


def test_typical_is_not_led_astray_by_impossible_tokens(sampler: Sampler) -> None:
    logits = np.full(SIZE, -np.inf, dtype=np.float32)
    logits[[3, 7, 9]] = [2.0, 1.5, -200.0]
    assert kept(sampler, logits, Sampling(**OPEN, typical_p=0.99)) == {3, 7}


@given(LOGITS, st.sampled_from([0.02, 0.1, 0.3]), st.sampled_from([0.3, 0.99]))
@settings(deadline=None)
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


@given(LOGITS, HISTORIES, st.sampled_from([-1, 1, 5, 64]), st.data())
@settings(deadline=None)
def test_penalties_lower_what_came_before(
    logits: NDArray[np.float32], history: list[Token], last_n: int, data: st.DataObject
) -> None:
    """Keskar et al.: CTRL, 2019, multiplying negative logits, as llama.cpp does."""
    repeat = data.draw(st.sampled_from([1.0, 1.3]))
    frequency = data.draw(st.sampled_from([0.0, 0.7]))
    presence = data.draw(st.sampled_from([0.0, 1.1]))
    logits = logits - np.float32(5)
    counts = Counter(history if last_n < 0 else history[-last_n:])
    expected = logits.astype(np.float64)
    for token, count in counts.items():
        expected[token] = expected[token] * repeat if expected[token] <= 0 else expected[token] / repeat
        expected[token] -= count * frequency + presence
    sampling = Sampling(
        temperature=0.0,
        repeat_penalty=repeat,
        frequency_penalty=frequency,
        presence_penalty=presence,
        penalty_last_n=last_n,
    )
    sampler = Sampler(SIZE, None, CELLS)
    try:
        chosen = sampler.choose(logits, row(sampling, history=history)).token
    finally:
        sampler.free()
    assert expected[chosen] == pytest.approx(float(expected.max()), abs=1e-5)


@pytest.fixture
def vocabulary(tmp_path: Path, load_engine: Any) -> Any:
    """llama.cpp's vocabulary of a loaded model, with the number of its tokens."""
    path = tmp_path / "tiny.gguf"
    path.write_bytes(tiny_llama().encode())
    engine = load_engine(path)
    return llama_cpp.llama_model_get_vocab(vars(engine)["_model"]), engine.vocabulary.size


def test_dry_is_that_of_llama_cpp(vocabulary: Any) -> None:
    pointer, size = vocabulary
    numbers: Any = np.random.default_rng(5)
    sampler = Sampler(size, pointer, 256)
    sampling = Sampling(temperature=0.0, dry_multiplier=2.0, dry_allowed_length=1, dry_breakers=())
    texts = (ctypes.c_char_p * 0)()
    pairs = ctypes.cast(texts, ctypes.POINTER(ctypes.c_char_p))
    changed = 0
    try:
        for _ in range(50):
            history = [Token(int(token)) for token in numbers.integers(size - 6, size, 30)]
            logits = numbers.normal(0, 1, size).astype(np.float32)
            dry = llama_cpp.llama_sampler_init_dry(pointer, 2.0, 1.75, 1, 256, pairs, 0)
            for token in history:
                llama_cpp.llama_sampler_accept(dry, token)
            candidates = np.zeros(size, dtype=CANDIDATE)
            candidates["id"], candidates["logit"] = np.arange(size), logits
            expected: Any = applied(dry, candidates)["logit"]
            llama_cpp.llama_sampler_free(dry)
            changed += bool((expected != logits).any())
            assert sampler.choose(logits, row(sampling, history=history)).token == int(np.argmax(expected))
    finally:
        sampler.free()
    assert changed > 25


_SAMPLINGS: Sequence[Sampling] = (
    Sampling(**OPEN, repeat_penalty=1.5),
    Sampling(**OPEN, repeat_penalty=1.5, penalty_last_n=3),
    Sampling(**OPEN, frequency_penalty=0.4, presence_penalty=0.2, penalty_last_n=-1),
)


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(_SAMPLINGS), HISTORIES, st.integers(0, 9)), max_size=12))
@settings(deadline=None)
def test_the_outcome_depends_on_the_row_alone(
    rows: list[tuple[int, Sampling, list[Token], int]],
) -> None:
    """Whatever a sequence held before: it may have been cut, gone on, or become another's."""
    logits = np.linspace(0, 3, SIZE, dtype=np.float32)
    used, histories = Sampler(SIZE, None, CELLS), dict[int, list[Token]]()
    try:
        for sequence, sampling, more, cut in rows:
            history = (histories.get(sequence, [])[: -cut or None] + more)[-CELLS:]
            histories[sequence] = history
            asked = row(sampling, 0.37, sequence=sequence, history=history)
            fresh = Sampler(SIZE, None, CELLS)
            assert used.choose(logits, asked) == fresh.choose(logits, asked)
            fresh.free()
            if cut == 9:
                used.forget(sequence)
    finally:
        used.free()


@given(LOGITS, st.floats(0.1, 8), st.sampled_from(DRAWS))
@settings(deadline=None)
def test_mirostat_2_keeps_what_surprises_no_more_than_its_state_and_steers_it(
    logits: NDArray[np.float32], mu: float, draw: float
) -> None:
    """Basu et al.: Mirostat, 2021, the second version as its authors published it."""
    surprise = -np.log2(probabilities(logits))
    if np.any(np.abs(surprise - mu) < 1e-3):
        return
    left = [token for token in np.argsort(surprise).tolist() if surprise[token] <= mu] or [int(np.argmin(surprise))]
    weights = 2.0 ** -surprise[left]
    weights /= weights.sum()
    sampler = Sampler(SIZE)
    try:
        sampled = sampler.choose(
            logits, row(Sampling(**OPEN, mirostat=2, mirostat_tau=3.0, mirostat_eta=0.2), draw, mirostat_mu=mu)
        )
    finally:
        sampler.free()
    assert sampled.token in left
    place = left.index(sampled.token)
    assert weights[:place].sum() <= draw + 1e-4
    assert weights[: place + 1].sum() >= draw - 1e-4
    assert sampled.mirostat_mu == pytest.approx(mu - 0.2 * (-math.log2(weights[place]) - 3.0), abs=1e-3)


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_comes_near_the_surprise_that_it_aims_at(version: int) -> None:
    numbers = np.random.default_rng(1)
    sampler, size, mu = Sampler(2000), 2000, None
    sampling = Sampling(**OPEN, mirostat=version, mirostat_tau=4.0, mirostat_eta=0.1)
    surprises: list[float] = []
    try:
        for _ in range(600):
            logits = (-1.3 * np.log(np.arange(1, size + 1)) + numbers.normal(0, 0.1, size)).astype(np.float32)
            sampled = sampler.choose(logits, row(sampling, float(numbers.random()), mirostat_mu=mu, logprobs=0))
            assert sampled.logprob is not None
            mu = sampled.mirostat_mu
            surprises.append(-sampled.logprob / math.log(2))
    finally:
        sampler.free()
    assert np.mean(surprises[200:]) == pytest.approx(4.0, abs=1.2)


def test_a_bias_moves_and_minus_infinity_forbids(sampler: Sampler) -> None:
    logits = np.linspace(0, 3, SIZE, dtype=np.float32)
    before = logits.copy()
    forbidden = tuple((Token(token), -math.inf) for token in range(5, SIZE))
    assert kept(sampler, logits, Sampling(**OPEN, logit_bias=forbidden)) == set(range(5))
    greedy = Sampling(temperature=0.0, logit_bias=((Token(4), 10.0),))
    assert sampler.choose(logits, row(greedy)).token == 4
    assert (logits == before).all()


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_when_every_token_is_forbidden_that_is_an_error(sampler: Sampler, temperature: float) -> None:
    everything = tuple((Token(token), -math.inf) for token in range(SIZE))
    with pytest.raises(EngineError, match="forbids every token"):
        sampler.choose(np.zeros(SIZE, dtype=np.float32), row(Sampling(temperature=temperature, logit_bias=everything)))


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(**OPEN, typical_p=0.0),
        Sampling(**OPEN, xtc_probability=1.0, xtc_threshold=0.0),
        Sampling(**OPEN, mirostat=1, mirostat_tau=0.0, mirostat_eta=1.0),
        Sampling(**OPEN, mirostat=2, mirostat_tau=0.0, mirostat_eta=1.0),
        Sampling(**OPEN, dry_multiplier=0.0, repeat_penalty=0.01),
        Sampling(top_k=2**31 - 1, top_p=0.0, min_p=1.0, typical_p=0.0, temperature=1000.0),
    ],
)
def test_no_settings_leave_nothing_to_draw_from(sampler: Sampler, sampling: Sampling) -> None:
    one = np.full(SIZE, -np.inf, dtype=np.float32)
    one[7] = 1.0
    for logits in (one, np.zeros(SIZE, dtype=np.float32), np.linspace(-1e30, 1e30, SIZE, dtype=np.float32)):
        for mu in (None, -50.0, 50.0):
            sampled = sampler.choose(logits, row(sampling, 0.5, history=[Token(1)] * 9, mirostat_mu=mu))
            assert 0 <= sampled.token < SIZE


@given(LOGITS, st.integers(0, SIZE + 5))
@settings(deadline=None)
def test_logprobs_are_those_of_the_model_before_all_filters(logits: NDArray[np.float32], count: int) -> None:
    logprobs = np.log(probabilities(logits))
    sampler = Sampler(SIZE)
    try:
        sampled = sampler.choose(logits, row(Sampling(top_k=3, temperature=0.1), 0.9, logprobs=count))
    finally:
        sampler.free()
    assert sampled.logprob == pytest.approx(logprobs[sampled.token], abs=1e-4)
    order = np.argsort(-logprobs)[:count].tolist()
    assert [token for token, _ in sampled.top] == order
    assert [logprob for _, logprob in sampled.top] == pytest.approx(logprobs[order].tolist(), abs=1e-4)


def test_the_likeliest_of_equals_are_those_with_the_lowest_ids() -> None:
    logits = np.zeros(SIZE, dtype=np.float32)
    assert likeliest(logits, 3) == [0, 1, 2]
    assert likeliest(logits, 0) == []
    logits[[30, 20]] = 1.0
    assert likeliest(logits, 3) == [20, 30, 0]
    assert log_normaliser(np.array([0.0, -np.inf], dtype=np.float32)) == pytest.approx(0.0)
