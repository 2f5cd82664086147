"""Penalties and DRY: what tokens cost because of the tokens before, and that nothing else counts."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from enclaved.plugin.engine import EngineError, SampleRow, Sampling, SequenceId, Token

pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, which is not installed")
import llama_cpp as typed_llama_cpp

from enclave_llama_cpp.candidates import CANDIDATE, applied
from enclave_llama_cpp.sampling import Sampler
from enclave_llama_cpp.sampling_history import PROTOTYPES_MAX

llama_cpp = cast("Any", typed_llama_cpp)

SIZE = 40
CELLS = 64
OPEN: dict[str, Any] = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 1.0}
LOGITS = st.permutations([number / 4 for number in range(SIZE)]).map(lambda each: np.array(each, dtype=np.float32))
HISTORIES = st.lists(st.integers(0, SIZE - 1).map(Token), max_size=CELLS)
A = 260
"""The first letter in the tiny vocabulary."""
LINE_END = 13


def row(sampling: Sampling, history: Sequence[Token], draw: float = 0.0, sequence: int = 0) -> SampleRow:
    return SampleRow(SequenceId(sequence), sampling, draw, history=history)


@given(LOGITS, HISTORIES, st.sampled_from([-1, 1, 5, 64]), st.data())
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
        chosen = sampler.choose(logits, row(sampling, history)).token
    finally:
        sampler.free()
    assert expected[chosen] == pytest.approx(float(expected.max()), abs=1e-5)


def dry_of_llama_cpp(pointer: Any, sampling: Sampling, last_n: int) -> Any:
    breakers = [text.encode() for text in sampling.dry_breakers]
    texts = (ctypes.c_char_p * len(breakers))(*breakers)
    return llama_cpp.llama_sampler_init_dry(
        pointer,
        sampling.dry_multiplier,
        sampling.dry_base,
        sampling.dry_allowed_length,
        last_n,
        ctypes.cast(texts, ctypes.POINTER(ctypes.c_char_p)),
        len(breakers),
    )


@pytest.mark.parametrize("last_n", [-1, 12])
@pytest.mark.parametrize("breakers", [(), ("a",), ("ab", "c"), ("\N{PILE OF POO}" * 40, "\n")])
def test_dry_is_that_of_llama_cpp(vocabulary: Any, breakers: tuple[str, ...], last_n: int) -> None:
    pointer, size = vocabulary
    numbers: Any = np.random.default_rng(5)
    sampler = Sampler(size, pointer, 256)
    sampling = Sampling(
        temperature=0.0, dry_multiplier=2.0, dry_allowed_length=1, dry_breakers=breakers, dry_last_n=last_n
    )
    changed = 0
    try:
        for _ in range(40):
            history = [Token(int(token)) for token in numbers.integers(A, A + 6, 30)]
            logits = numbers.normal(0, 1, size).astype(np.float32)
            logits[A : A + 6] += 3
            dry = dry_of_llama_cpp(pointer, sampling, 256 if last_n < 0 else last_n)
            for token in history:
                llama_cpp.llama_sampler_accept(dry, token)
            candidates = np.zeros(size, dtype=CANDIDATE)
            candidates["id"], candidates["logit"] = np.arange(size), logits
            expected: Any = applied(dry, candidates)["logit"]
            llama_cpp.llama_sampler_free(dry)
            changed += bool((expected != logits).any())
            assert sampler.choose(logits, row(sampling, history)).token == int(np.argmax(expected))
    finally:
        sampler.free()
    assert changed > 10


def test_dry_penalises_a_repeat_that_goes_on_but_not_across_a_breaker(vocabulary: Any) -> None:
    pointer, size = vocabulary
    sampler = Sampler(size, pointer, 256)
    logits = np.zeros(size, dtype=np.float32)
    logits[A + 3], logits[A + 4] = 2.0, 1.0
    greedy = Sampling(temperature=0.0, dry_multiplier=2.0, dry_allowed_length=2, dry_breakers=("\n",))

    def chosen(*tokens: int) -> int:
        return sampler.choose(logits, row(greedy, [Token(token) for token in tokens])).token

    try:
        assert chosen(A, A + 1, A + 3, A, A + 1) == A + 4
        assert chosen(A + 1, A + 3, A + 1) == A + 3, "shorter than is allowed"
        assert chosen(A, A + 1, A + 3, A, LINE_END, A + 1) == A + 3
        assert chosen(A, LINE_END, A + 3, A, LINE_END) == A + 3, "a breaker is no part of a repeat"
    finally:
        sampler.free()


_PENALISED: Sequence[Sampling] = (
    Sampling(**OPEN, repeat_penalty=1.5),
    Sampling(**OPEN, repeat_penalty=1.5, penalty_last_n=3),
    Sampling(**OPEN, frequency_penalty=0.4, presence_penalty=0.2, penalty_last_n=-1),
    Sampling(**OPEN, dry_multiplier=1.0, dry_allowed_length=1),
    Sampling(**OPEN, dry_multiplier=1.0, dry_allowed_length=1, dry_last_n=7, dry_breakers=("a",)),
    Sampling(**OPEN, dry_multiplier=1.0, dry_allowed_length=1, dry_last_n=9, repeat_penalty=1.2, penalty_last_n=4),
)
# Few tokens, so that much is repeated; now and then another.
_REPETITIVE = st.lists(st.sampled_from([A, A + 1, A + 2, A, A + 1, 3, LINE_END]).map(Token), max_size=CELLS)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from(_PENALISED), _REPETITIVE, st.integers(0, 9)), max_size=12),
    st.integers(0, 2**32 - 1),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_outcome_depends_on_the_row_alone(
    vocabulary: Any, rows: list[tuple[int, Sampling, list[Token], int]], seed: int
) -> None:
    """Whatever a sequence held before: it may have been cut, gone on, shifted, or become another's; its history may be
    longer than the cells."""
    pointer, size = vocabulary
    numbers: Any = np.random.default_rng(seed)
    logits = numbers.normal(0, 1, size).astype(np.float32)
    logits[A : A + 3] += 4
    used, histories = Sampler(size, pointer, CELLS), dict[int, list[Token]]()
    try:
        for sequence, sampling, more, cut in rows:
            history = histories.get(sequence, [])
            history = (history[3:] if cut == 8 else history[: -cut or None]) + more
            histories[sequence] = history
            asked = row(sampling, history, float(numbers.random()), sequence)
            fresh = Sampler(size, pointer, CELLS)
            assert used.choose(logits, replace(asked, logprobs=2)) == fresh.choose(logits, replace(asked, logprobs=2))
            greedy = replace(asked, sampling=replace(sampling, temperature=0.0))
            assert used.choose(logits, greedy) == fresh.choose(logits, greedy)
            fresh.free()
            if cut == 9:
                used.forget(sequence)
    finally:
        used.free()


def test_a_history_may_be_any_sequence() -> None:
    sampler = Sampler(SIZE, None, CELLS)
    logits = np.linspace(0, 3, SIZE, dtype=np.float32)
    sampling = Sampling(temperature=0.0, repeat_penalty=2.0)
    history = [Token(SIZE - 1)]
    try:
        for number in range(10):
            as_list = sampler.choose(logits, row(sampling, history, sequence=0)).token
            as_tuple = sampler.choose(logits, row(sampling, tuple(history), sequence=1)).token
            assert as_list == as_tuple
            history.append(Token(SIZE - 1 - number))
    finally:
        sampler.free()


@pytest.mark.parametrize("wrong", [-1, SIZE, 2**31])
def test_a_history_with_what_is_no_token_is_an_error_and_the_sampler_stays_usable(wrong: int) -> None:
    sampler, fresh = Sampler(SIZE, None, CELLS), Sampler(SIZE, None, CELLS)
    logits = np.linspace(0, 3, SIZE, dtype=np.float32)
    sampling = Sampling(temperature=0.0, frequency_penalty=0.5)
    history = [Token(SIZE - 1), Token(SIZE - 2)]
    try:
        sampler.choose(logits, row(sampling, history))
        with pytest.raises(EngineError, match="outside the vocabulary"):
            sampler.choose(logits, row(sampling, [*history, Token(3), Token(wrong)]))
        longer = [*history, Token(SIZE - 1), Token(SIZE - 3)]
        assert sampler.choose(logits, row(sampling, longer)) == fresh.choose(logits, row(sampling, longer))
    finally:
        sampler.free()
        fresh.free()


def test_dry_without_a_vocabulary_is_an_error() -> None:
    sampler = Sampler(SIZE, None, CELLS)
    try:
        with pytest.raises(EngineError, match="vocabulary"):
            sampler.choose(np.zeros(SIZE, dtype=np.float32), row(Sampling(dry_multiplier=1.0), [Token(1)]))
    finally:
        sampler.free()


def test_many_settings_do_not_pile_up(vocabulary: Any) -> None:
    pointer, size = vocabulary
    sampler = Sampler(size, pointer, CELLS)
    logits = np.zeros(size, dtype=np.float32)
    logits[A + 1] = 1.0
    history = [Token(A), Token(A + 1), Token(A)]
    try:
        for number in range(3 * PROTOTYPES_MAX):
            sampling = Sampling(temperature=0.0, dry_multiplier=2.0 + number, dry_allowed_length=1)
            assert sampler.choose(logits, row(sampling, history, sequence=number % 3)).token == 0
    finally:
        sampler.free()
