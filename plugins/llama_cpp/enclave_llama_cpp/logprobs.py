"""Log probabilities of a row of logits: of the chosen token, and of the likeliest."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from enclave_llama_cpp.sampling_mass import contenders
from enclaved.plugin.engine import Token


def log_normaliser(logits: NDArray[np.float32]) -> float:
    """The natural logarithm of the sum of all exponentials: what a logit exceeds its logprob by."""
    highest = float(logits.max())
    # The exponentials in float32, which is what takes the time; their sum, of up to 2^18 terms, in float64.
    with np.errstate(over="ignore"):
        return highest + math.log(float(np.exp(logits - np.float32(highest)).sum(dtype=np.float64)))


def likeliest(logits: NDArray[np.float32], count: int) -> list[Token]:
    """Ids of the largest logits, largest first, lower id first among equals."""
    if count < 1:
        return []
    ids = contenders(logits, count)
    order = np.argsort(-logits[ids], kind="stable")
    return [Token(int(token)) for token in ids[order[:count]]]
