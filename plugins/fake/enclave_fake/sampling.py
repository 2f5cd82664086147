"""Chooses a token from a small known distribution, exactly as the engine contract says.

The fake engine calls it; a backend's author can read here what filters and draw mean, without a library in between.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

from enclaved.plugin.engine import Sampling, Token


def choose(probabilities: Mapping[Token, float], sampling: Sampling, draw: float) -> Token:
    """The token that `draw` falls on. `probabilities` has at least one token; what is not in it has probability 0."""
    ranked = sorted(probabilities.items(), key=lambda item: (-item[1], item[0]))
    if sampling.temperature <= 0:
        return ranked[0][0]
    if sampling.top_k > 0:
        ranked = ranked[: sampling.top_k]
    if sampling.top_p < 1:
        total = sum(probability for _, probability in ranked)
        cumulated = itertools.accumulate(probability / total for _, probability in ranked)
        below = sum(1 for reached in cumulated if reached < sampling.top_p)
        ranked = ranked[: below + 1]
    if sampling.min_p > 0:
        ranked = [item for item in ranked if item[1] >= sampling.min_p * ranked[0][1]]
    highest = math.log(ranked[0][1])
    weights = [math.exp((math.log(probability) - highest) / sampling.temperature) for _, probability in ranked]
    wanted = draw * sum(weights)
    for (token, _), reached in zip(ranked, itertools.accumulate(weights), strict=True):
        if reached > wanted:
            return token
    return ranked[-1][0]
