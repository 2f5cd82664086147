"""Chooses a token from a small known distribution, exactly as the engine contract says.

The fake engine calls it; a backend's author can read here what filters and draw mean, without a library in between.
Bias, temperature, top_k, top_p, min_p and logprobs; the other settings make no difference to a fake model.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

from enclaved.plugin.engine import Sampled, SampleRow, Sampling, Token


def choose(probabilities: Mapping[Token, float], row: SampleRow) -> Sampled:
    """The token that `row.draw` falls on. `probabilities` has at least one token, none of probability 0; what is not in
    it has probability 0, no bias makes it come, and it is not among the likeliest that are told."""
    token = _chosen(_biased(probabilities, row.sampling), row.sampling, row.draw)
    if row.logprobs is None:
        return Sampled(token)
    ranked = sorted(probabilities.items(), key=lambda item: (-item[1], item[0]))
    top = tuple((each, math.log(probability)) for each, probability in ranked[: row.logprobs])
    return Sampled(token, math.log(probabilities[token]), top)


def _biased(probabilities: Mapping[Token, float], sampling: Sampling) -> Mapping[Token, float]:
    """Not normalised. When every token is forbidden, none is."""
    weights = {token: math.log(weight) for token, weight in probabilities.items()}
    for token, bias in sampling.logit_bias:
        if token in weights:
            weights[token] += bias
    highest = max(weights.values())
    if highest == -math.inf:
        return probabilities
    biased = {token: math.exp(weight - highest) for token, weight in weights.items()}
    return {token: weight for token, weight in biased.items() if weight > 0}


def _chosen(probabilities: Mapping[Token, float], sampling: Sampling, draw: float) -> Token:
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
