"""From a request's parameters to the engine's `Sampling`, and the draws.

A draw is a function of (seed, choice, position) without state: a sequence that is parked and goes on later draws the
same, and a seed means the same in every backend.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

from enclave.protocol.bodies import Sampling as AskedSampling
from enclave.protocol.errors import RemoteProtocolError
from enclaved.plugin.engine import Sampling, Token

_MASK = (1 << 64) - 1
_ASKED_ALIKE = tuple(field.name for field in fields(Sampling) if field.name != "logit_bias")
"""Fields of the same name and meaning in both."""

FILTER_STREAM = 1
"""Of `draws`: for the filters that leave something to chance; 0 is for the final draw."""


def sampling_of(asked: AskedSampling, vocabulary_size: int) -> Sampling:
    """What was asked for, with the built-in values for the rest. Its bounds were checked when it was read.

    Raises RemoteProtocolError for tokens that are not in the vocabulary.
    """
    for index, bias in enumerate(asked.logit_bias):
        if bias.token >= vocabulary_size:
            where = f"logit_bias[{index}].token"
            raise RemoteProtocolError(
                f"{where}: token {bias.token} is outside the vocabulary of {vocabulary_size:,}", field=where
            )
    return Sampling(
        logit_bias=tuple(
            (Token(bias.token), float("-inf") if bias.bias is None else bias.bias) for bias in asked.logit_bias
        ),
        **{name: value for name in _ASKED_ALIKE if (value := getattr(asked, name)) is not None},
    )


def draws(seed: int, choice: int, stream: int = 0) -> Callable[[int], float]:
    """Gives for each position a number in [0, 1) with 53 random bits, the same for the same four integers.

    SplitMix64's finaliser (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014), chained.
    """
    of_choice = _mix(_mix(seed & _MASK) ^ (choice & _MASK))
    if stream:
        of_choice = _mix(of_choice ^ _mix(stream & _MASK))
    return lambda position: (_mix(of_choice ^ (position & _MASK)) >> 11) / (1 << 53)


def _mix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
