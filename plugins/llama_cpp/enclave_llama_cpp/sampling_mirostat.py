"""Mirostat: which tokens are left to draw from, given its state (Basu et al.: Mirostat, 2021).

llama.cpp has both versions as samplers, but they keep the state to themselves and draw on their own; and they sort the
whole vocabulary for each token, 8 ms for 128,000. Here the state comes and goes with the row. What is left is the same,
except that llama.cpp's version 1 loses all but one token when its count is larger than an int holds.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from enclave_llama_cpp.logprobs import likeliest, log_normaliser

ESTIMATED_FROM = 100
"""From so many of the likeliest tokens version 1 estimates how probability falls with rank."""


def truncated(logits: NDArray[np.float32], version: int, mu: float, vocabulary_size: int) -> NDArray[np.intp]:
    """Places of the tokens that are left, at least one. `logits`: finite, after temperature."""
    if version == 1:
        return np.array(likeliest(logits, _count(logits, mu, vocabulary_size)), dtype=np.intp)
    surprise = (log_normaliser(logits) - logits) / np.float32(math.log(2))
    left = np.flatnonzero(surprise <= np.float64(mu))
    return left if len(left) else np.array([np.argmax(logits)])


def _count(logits: NDArray[np.float32], mu: float, vocabulary_size: int) -> int:
    """Version 1: how many tokens have together the surprise `mu`, if probability falls with a power of the rank."""
    head = logits[likeliest(logits, ESTIMATED_FROM)].astype(np.float64)
    if len(head) < 2:
        return 1
    ranks = np.arange(1, len(head) + 1)
    steps = np.log(ranks[1:] / ranks[:-1])
    exponent = float((steps * (head[:-1] - head[1:])).sum() / (steps * steps).sum())
    excess = exponent - 1
    spread = math.log(vocabulary_size)
    # Both ways of writing it are positive; the one is the other's limit.
    share = excess / -math.expm1(-excess * spread) if abs(excess) > 1e-9 else 1 / spread
    bits = math.log(share) + mu * math.log(2)
    largest = math.log(len(logits))
    if bits >= exponent * largest:
        return len(logits)
    return max(1, int(math.exp(bits / exponent))) if bits > 0 else 1


def steered(mu: float, surprise: float, tau: float, eta: float) -> float:
    """The state after a token of this surprise, in bits, among those that were left."""
    return mu - eta * (surprise - tau)
