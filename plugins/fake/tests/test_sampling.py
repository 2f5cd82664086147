"""What a fake model chooses, by the words of the contract."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_fake.sampling import choose
from enclaved.plugin.engine import Sampled, SampleRow, Sampling, SequenceId, Token

A, B, C, D = (Token(number) for number in range(4))
SHARES = {B: 0.5, A: 0.25, D: 0.125, C: 0.125}
PLAIN = Sampling(top_k=0, top_p=1.0, min_p=0.0, temperature=1.0)


def sampled(sampling: Sampling, draw: float = 0.0, logprobs: int | None = None) -> Sampled:
    return choose(SHARES, SampleRow(SequenceId(0), sampling, draw, logprobs=logprobs))


def told(sampling: Sampling) -> list[Token]:
    """What a hundred draws fall on, in their order."""
    return list(dict.fromkeys(sampled(sampling, number / 100).token for number in range(100)))


def test_a_draw_falls_on_tokens_in_order_of_probability_then_id() -> None:
    draws = (0.0, 0.49, 0.5, 0.74, 0.75, 0.87, 0.875, 0.999)
    assert [sampled(PLAIN, draw).token for draw in draws] == [B, B, A, A, C, C, D, D]


@pytest.mark.parametrize(
    ("fields", "left"),
    [
        ({"top_k": 2}, [B, A]),
        ({"top_p": 0.75}, [B, A]),
        ({"top_p": 0.76}, [B, A, C]),
        ({"top_p": 0.0}, [B]),
        ({"min_p": 0.5}, [B, A]),
        ({"min_p": 1.0}, [B]),
        ({"top_k": 3, "top_p": 0.6, "min_p": 0.9}, [B]),
        ({"logit_bias": ((B, -math.inf), (C, 3.0))}, [C, A, D]),
        ({"logit_bias": ((C, 1.0), (C, 1.0))}, [C, B, A, D]),
        ({"logit_bias": ((Token(99), 100.0),)}, [B, A, C, D]),
        ({"temperature": 0.0, "logit_bias": ((B, -1.0),)}, [A]),
    ],
)
def test_filters_leave_what_the_contract_says(fields: dict[str, Any], left: list[Token]) -> None:
    assert told(replace(PLAIN, **fields)) == left


def test_temperature_comes_after_the_filters() -> None:
    hot = replace(PLAIN, top_p=0.75, temperature=1000.0)
    assert [sampled(hot, draw).token for draw in (0.49, 0.51)] == [B, A]


def test_logprobs_are_told_before_bias_and_filters() -> None:
    sampling = Sampling(temperature=0.0, top_k=1, logit_bias=((C, 100.0),))
    chosen = sampled(sampling, logprobs=3)
    assert chosen.token == C
    assert chosen.logprob == pytest.approx(math.log(0.125))
    assert [token for token, _ in chosen.top] == [B, A, C]
    assert [logprob for _, logprob in chosen.top] == pytest.approx([math.log(share) for share in (0.5, 0.25, 0.125)])
    assert sampled(sampling, logprobs=0).top == ()
    assert sampled(sampling).logprob is None


@given(st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True), st.floats(1e-3, 1000))
def test_a_larger_draw_never_falls_on_a_likelier_token(one: float, other: float, temperature: float) -> None:
    sampling = replace(PLAIN, temperature=temperature)
    low, high = (sampled(sampling, draw).token for draw in sorted((one, other)))
    assert (-SHARES[low], low) <= (-SHARES[high], high)
