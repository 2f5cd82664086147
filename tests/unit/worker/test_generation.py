"""One answer in the making: what is shown, when it ends, and what is counted."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_engine import END, SmallVocabulary

from enclave.protocol.bodies import GenerateParams
from enclaved.plugin.engine import Sampled, Sampling, SequenceId, Token
from enclaved.worker.asked import Asked
from enclaved.worker.generation import LOGPROB_MIN, Generation
from enclaved.worker.overflow import Cut
from enclaved.worker.sampling import draws


def _generation(
    prompt: bytes = b"ab",
    tokens_max: int = 100,
    seed: int = 7,
    *,
    choice: int = 0,
    sampling: Sampling | None = None,
    **params: Any,
) -> Generation:
    asked = Asked(
        params=GenerateParams(prompt="", **params),
        prompt=[Token(byte) for byte in prompt],
        sampling=sampling or Sampling(),
        seed=seed,
        choices=1,
        tokens_max=tokens_max,
        ends_with_context=False,
        keep=0,
        left_out_tokens=0,
    )
    return Generation("r", asked, choice, priority="normal", vocabulary=SmallVocabulary())


def _booked(generation: Generation, byte: int) -> str:
    chunk = generation.book(Sampled(Token(byte)))
    return "" if chunk is None else chunk["text"]


def _say(generation: Generation, answer: bytes) -> str:
    """Books the answer's tokens until it is finished."""
    shown = ""
    for byte in answer:
        assert generation.finish_reason is None
        shown += _booked(generation, byte)
        if generation.finish_reason is not None:
            break
    return shown


@given(st.text(st.characters(min_codepoint=1, codec="utf-8"), max_size=30))
def test_an_answer_is_shown_whole_when_the_model_ends_it(answer: str) -> None:
    generation = _generation(tokens_max=1000)
    assert _say(generation, answer.encode() + bytes([END])) == answer
    assert generation.finish_reason == "stop"
    assert generation.completion_tokens == len(answer.encode())


@given(st.binary(min_size=1, max_size=30).filter(lambda b: 0 not in b), st.integers(1, 30))
def test_no_more_tokens_are_booked_than_were_asked_for(answer: bytes, tokens_max: int) -> None:
    generation = _generation(tokens_max=tokens_max)
    shown = _say(generation, answer)
    assert generation.completion_tokens == min(len(answer), tokens_max)
    assert generation.finish_reason == ("length" if len(answer) >= tokens_max else None)
    if generation.finish_reason == "length":
        assert shown == answer[:tokens_max].decode("utf-8", "replace")


def test_a_stop_string_ends_it_and_is_not_shown() -> None:
    generation = _generation(stop=("\n\n",))
    assert _say(generation, b"one\ntwo\n\nthree") == "one\ntwo"
    assert generation.finish_reason == "stop"
    assert generation.completion_tokens == len(b"one\ntwo\n\n")


def test_a_stop_string_on_the_last_token_is_a_stop_and_not_a_length() -> None:
    generation = _generation(stop=("!",), tokens_max=3)
    assert _say(generation, b"ab!") == "ab"
    assert generation.finish_reason == "stop"


@pytest.mark.parametrize("tokens_max", [3, 4])
def test_what_was_held_back_is_shown_at_the_end(tokens_max: int) -> None:
    generation = _generation(stop=("bcd",), tokens_max=tokens_max)
    assert _say(generation, b"abc\0") == "abc"


def test_half_a_character_at_the_end_is_one_replacement() -> None:
    generation = _generation(tokens_max=2)
    assert _say(generation, "€".encode()) == "\ufffd"


def test_half_a_character_can_complete_no_stop_string_but_its_replacement_can() -> None:
    generation = _generation(stop=("x\ufffd",), tokens_max=3)
    assert _say(generation, b"ax" + "€".encode()[:1]) == "a"


def test_with_ignore_eos_the_end_token_is_one_like_any_other() -> None:
    generation = _generation(ignore_eos=True, tokens_max=3)
    assert _say(generation, b"a\0b") == "ab"
    assert (generation.finish_reason, generation.completion_tokens) == ("length", 3)


def test_tokens_left_are_those_that_were_not_evaluated() -> None:
    generation = _generation(b"abc")
    assert (generation.tokens_left, generation.next_tokens(2)) == (3, [97, 98])
    generation.evaluated += 2
    assert (generation.tokens_left, generation.next_tokens(5)) == (1, [99])
    generation.evaluated += 1
    generation.book(Sampled(Token(100)))
    assert (generation.tokens_left, generation.next_tokens(1)) == (1, [100])


def test_each_token_is_drawn_at_its_own_position() -> None:
    generation = _generation(b"abc", seed=9)
    assert generation.row(SequenceId(1)).draw == draws(9, 0)(3)
    generation.book(Sampled(Token(100)))
    assert generation.row(SequenceId(1)).draw == draws(9, 0)(4)


def test_each_choice_has_draws_of_its_own_and_says_which_it_is() -> None:
    generation = _generation(b"abc", seed=9, choice=2)
    assert generation.row(SequenceId(1)).draw == draws(9, 2)(3)
    assert generation.book(Sampled(Token(100))) == {"text": "d", "tokens": [100], "choice": 2}


def test_the_engine_gets_the_tokens_before_only_where_it_looks_back() -> None:
    assert _generation(b"abc").row(SequenceId(1)).history == ()
    generation = _generation(b"abc", sampling=Sampling(repeat_penalty=1.1))
    generation.book(Sampled(Token(100)))
    assert list(generation.row(SequenceId(1)).history) == [97, 98, 99, 100]


def test_what_mirostat_remembers_goes_from_token_to_token() -> None:
    generation = _generation(sampling=Sampling(mirostat=2))
    assert generation.row(SequenceId(1)).mirostat_mu is None
    generation.book(Sampled(Token(100), mirostat_mu=7.5))
    assert generation.row(SequenceId(1)).mirostat_mu == 7.5


def test_logprobs_come_with_their_texts_where_asked() -> None:
    sampled = Sampled(Token(100), -0.5, ((Token(100), -0.5), (Token(200), float("-inf"))))
    assert "logprobs" not in (_generation().book(sampled) or {})
    generation = _generation(logprobs=2)
    assert generation.row(SequenceId(1)).logprobs == 2
    assert generation.book(sampled) == {
        "text": "d",
        "tokens": [100],
        "logprobs": [
            {
                "token": 100,
                "logprob": -0.5,
                "text": "d",
                "top": [
                    {"token": 100, "logprob": -0.5, "text": "d"},
                    {"token": 200, "logprob": LOGPROB_MIN, "text": "\ufffd"},
                ],
            }
        ],
    }


def test_after_a_shift_it_goes_on_with_what_is_left_and_draws_anew() -> None:
    generation = _generation(b"abcdefgh", seed=9)
    generation.evaluated = 8
    generation.book(Sampled(Token(100)))
    generation.shifted(Cut(2, 3))
    assert bytes(generation.tokens) == b"abfghd"
    assert (generation.evaluated, generation.tokens_left, generation.shifted_tokens) == (5, 1, 3)
    assert generation.reusable == 0
    assert generation.row(SequenceId(1)).draw == draws(9, 0)(9)
