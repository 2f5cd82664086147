"""From a request's parameters to the engine's `Sampling`, and the final draw.

The draw is a function of (seed, choice, position) without state: a sequence that is parked and goes on later draws
the same, and a seed means the same in every backend.
"""

from __future__ import annotations

from collections.abc import Callable

from enclave.protocol.bodies import Sampling as AskedSampling
from enclaved.plugin.engine import Sampling

_MASK = (1 << 64) - 1
_DEFAULT = Sampling()


def sampling_of(asked: AskedSampling) -> Sampling:
    """What was asked for, with the built-in values for the rest."""
    return Sampling(
        top_k=_DEFAULT.top_k if asked.top_k is None else asked.top_k,
        top_p=_DEFAULT.top_p if asked.top_p is None else asked.top_p,
        min_p=_DEFAULT.min_p if asked.min_p is None else asked.min_p,
        temperature=_DEFAULT.temperature if asked.temperature is None else asked.temperature,
    )


def draws(seed: int, choice: int) -> Callable[[int], float]:
    """Gives for each position a number in [0, 1) with 53 random bits, the same for the same three integers.

    SplitMix64's finaliser (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014), chained.
    """
    of_choice = _mix(_mix(seed & _MASK) ^ (choice & _MASK))
    return lambda position: (_mix(of_choice ^ (position & _MASK)) >> 11) / (1 << 53)


def _mix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
