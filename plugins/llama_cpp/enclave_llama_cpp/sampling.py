"""Chooses the next token from a row of logits: llama.cpp's filters, then our own draw.

The draw is a function of the row and a number alone, as `SampleRow.draw` says, so that a seed means the same in every
backend; llama.cpp's own `dist` keeps a generator of its own. Called by the engine, a row at a time.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from functools import lru_cache
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from enclave_llama_cpp.candidates import CANDIDATE, applied
from enclave_llama_cpp.logprobs import likeliest, log_normaliser
from enclave_llama_cpp.sampling_history import HistoryFilters
from enclave_llama_cpp.sampling_mass import contenders, place_at, until
from enclave_llama_cpp.sampling_mirostat import steered, truncated
from enclaved.plugin.engine import EngineError, Sampled, SampleRow, Token

CHAINS_MAX = 64
"""Filter chains kept: one for each combination of settings lately used."""
NEGLIGIBLE = 80.0
"""A logit so far below the highest has a probability that float32 cannot tell from 0; some filters take logarithms."""
SORTED_MAX = 512
"""So many tokens are sorted in less time than it takes to find out which of them need not be."""
ROUNDING = 0.01
"""Of logits, and far more than any float32 arithmetic errs by."""
BIASES_KEPT = 16
XTC_THRESHOLD_MAX = 0.5
"""Above it at most one token is one of the likeliest, and none is left out."""

_Key = tuple[int, float, float, float, float]


class Sampler:
    """Filters and draws for one vocabulary. Not for several threads."""

    def __init__(self, vocabulary_size: int, vocabulary: Any = None, cells: int = 0) -> None:
        """`vocabulary`: llama.cpp's, which DRY needs. `cells`: no sequence holds more tokens."""
        self._size = vocabulary_size
        self._ids: NDArray[np.int32] = np.arange(vocabulary_size, dtype=np.int32)
        self._candidates: NDArray[Any] = np.zeros(vocabulary_size, dtype=CANDIDATE)
        self._chains: OrderedDict[_Key, Any] = OrderedDict()
        self._history = HistoryFilters(vocabulary, vocabulary_size, cells)

    def choose(self, logits: NDArray[np.float32], row: SampleRow) -> Sampled:
        """The chosen token. `logits`: float32[vocabulary], left as they are; -inf is a token that the model never says.

        Raises EngineError when they are no numbers, when no token is left to choose, and for ids that are no tokens.
        """
        sampling = row.sampling
        # Also the lowest id among equals; a NaN, if there is one.
        if not np.isfinite(logits[int(np.argmax(logits))]):
            raise EngineError("the model computed no usable probabilities (its logits are not finite numbers)")
        changed = self._changed(logits, row)
        best = int(np.argmax(changed))
        if not np.isfinite(changed[best]):
            raise EngineError("logit_bias, with the penalties, forbids every token that the model could go on with")
        mu: float | None = None
        if sampling.temperature <= 0:
            token = best
        elif sampling.mirostat:
            token, mu = self._steered(changed, row)
        else:
            ids, kept = self._filtered(changed, float(changed[best]), row)
            token = drawn(ids, kept, sampling.temperature, row.draw)
        if row.logprobs is None:
            return Sampled(Token(token), mirostat_mu=mu)
        normaliser = log_normaliser(logits)
        top = tuple((each, float(logits[each]) - normaliser) for each in likeliest(logits, row.logprobs))
        return Sampled(Token(token), float(logits[token]) - normaliser, top, mu)

    def forget(self, sequence: int) -> None:
        """The sequence is empty."""
        self._history.forget(sequence)

    def _changed(self, logits: NDArray[np.float32], row: SampleRow) -> NDArray[np.float32]:
        """The logits with bias and penalties; the same array where there are none."""
        sampling = row.sampling
        if not sampling.logit_bias and not sampling.looks_back:
            return logits
        changed = logits.copy()
        if sampling.logit_bias:
            ids, biases = _biases(sampling.logit_bias)
            if ids.min() < 0 or ids.max() >= self._size:
                raise EngineError(f"logit_bias names a token outside the vocabulary of {self._size}")
            np.add.at(changed, ids, biases)
        if sampling.looks_back:
            self._history.apply(changed, row.sequence, sampling, row.history)
        return changed

    def _filtered(
        self, logits: NDArray[np.float32], highest: float, row: SampleRow
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Ids and logits of the tokens that pass the filters, in any order.

        llama.cpp's typical and top-p sort all that they are given, 19 and 9 ms for 128,000 tokens. So the first filter
        that is on gets only what it could leave; if that is typical or top-p, where the sum over all counts, it is done
        here. XTC alone has llama.cpp sort everything (9 ms); commonly it has min-p or top-p before it.
        """
        sampling = row.sampling
        typical_p, top_p, min_p = sampling.typical_p, sampling.top_p, min(sampling.min_p, 1.0)
        xtc = row.filter_draw < sampling.xtc_probability and sampling.xtc_threshold <= XTC_THRESHOLD_MAX
        if sampling.top_k > 0:
            ids = self._ids[contenders(logits, min(sampling.top_k, self._size))]
        elif typical_p < 1:
            ids, typical_p = self._ids[_typical(logits, typical_p)], 1.0
        elif top_p < 1:
            ids, top_p = self._ids[_nucleus(logits, highest, top_p)], 1.0
        elif min_p > 0:
            ids = self._ids[logits >= np.float32(highest + math.log(min_p) - ROUNDING)]
        elif xtc:
            ids = self._ids
        else:
            return self._ids, logits
        kept = logits[ids]
        if typical_p < 1 or xtc:
            # Neither may meet what is impossible: the one takes its logarithm, the other may prefer it.
            possible = kept >= highest - NEGLIGIBLE
            ids, kept = ids[possible], kept[possible]
        chain = self._chain(
            (
                min(sampling.top_k, self._size),
                max(typical_p, 0.0),
                max(top_p, 0.0),
                min_p,
                max(sampling.xtc_threshold, 0.0) if xtc else 1.0,
            )
        )
        if chain is None:
            return ids, kept
        candidates = self._candidates[: len(ids)]
        candidates["id"] = ids
        candidates["logit"] = kept
        left = applied(chain, candidates)
        return left["id"], left["logit"]

    def _chain(self, key: _Key) -> Any:
        """llama.cpp's filters, the likes of which are kept; None when all are off."""
        chain = self._chains.get(key)
        if chain is not None:
            self._chains.move_to_end(key)
            return chain
        top_k, typical_p, top_p, min_p, xtc_threshold = key
        filters: list[Any] = []
        if top_k > 0:
            filters.append(llama_cpp.llama_sampler_init_top_k(top_k))
        if typical_p < 1:
            filters.append(llama_cpp.llama_sampler_init_typical(typical_p, 1))
        if top_p < 1:
            filters.append(llama_cpp.llama_sampler_init_top_p(top_p, 1))
        if min_p > 0:
            filters.append(llama_cpp.llama_sampler_init_min_p(min_p, 1))
        if xtc_threshold <= XTC_THRESHOLD_MAX:
            # Whether it applies is decided by the row's own draw: here it always does.
            filters.append(llama_cpp.llama_sampler_init_xtc(1.0, xtc_threshold, 1, 0))
        if not filters:
            return None
        chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        for each in filters:  # the chain owns and frees them
            llama_cpp.llama_sampler_chain_add(chain, each)
        self._chains[key] = chain
        if len(self._chains) > CHAINS_MAX:
            _, oldest = self._chains.popitem(last=False)
            llama_cpp.llama_sampler_free(oldest)
        return chain

    def _steered(self, logits: NDArray[np.float32], row: SampleRow) -> tuple[int, float]:
        """Mirostat: the chosen token and the state after it."""
        sampling = row.sampling
        mu = 2 * sampling.mirostat_tau if row.mirostat_mu is None else row.mirostat_mu
        with np.errstate(over="ignore"):
            hot = ((logits.astype(np.float64) - float(logits.max())) / sampling.temperature).astype(np.float32)
        possible = np.flatnonzero(hot > -NEGLIGIBLE)
        places = truncated(hot[possible], sampling.mirostat, mu, self._size)
        ids = self._ids[possible[places]]
        kept = hot[ids]
        token = drawn(ids, kept, 1.0, row.draw)
        surprise = (log_normaliser(kept) - float(hot[token])) / math.log(2)
        return token, steered(mu, surprise, sampling.mirostat_tau, sampling.mirostat_eta)

    def free(self) -> None:
        self._history.free()
        while self._chains:
            _, chain = self._chains.popitem()
            llama_cpp.llama_sampler_free(chain)


def drawn(ids: NDArray[np.int32], logits: NDArray[np.float32], temperature: float, draw: float) -> int:
    """The first id, in order of falling probability (lower id first among equals), at which the cumulated probability
    exceeds `draw`.

    Temperature divides the distance to the largest logit, in double precision: no temperature > 0 overflows that way.
    """
    distances: NDArray[np.float64] = np.subtract(logits.max(), logits, dtype=np.float64)
    with np.errstate(over="ignore"):
        if len(ids) > SORTED_MAX:
            return int(ids[place_at(distances, ids, temperature, draw)])
        weights = np.exp(distances / -temperature)
    order: NDArray[np.intp] = np.lexsort((ids, distances))
    cumulated: NDArray[np.float64] = np.cumsum(weights[order])
    total = float(cumulated[-1])
    place: np.intp = np.searchsorted(cumulated, draw * total, side="right")
    # Rounding may carry a draw just below 1 past the end, or onto tokens that have no probability at all.
    last: np.intp = np.searchsorted(cumulated, total, side="left")
    return int(ids[order[min(place, last)]])


def _nucleus(logits: NDArray[np.float32], highest: float, top_p: float) -> NDArray[np.intp]:
    """The likeliest tokens that together make up this share (Holtzman et al.: The Curious Case of Neural Text
    Degeneration, 2020)."""
    return until(np.float32(highest) - logits, top_p, side="left")


def _typical(logits: NDArray[np.float32], typical_p: float) -> NDArray[np.intp]:
    """The tokens whose surprise is nearest to the entropy, which together make up more than this share (Meister et al.:
    Locally Typical Sampling, 2022)."""
    surprises = np.float32(log_normaliser(logits)) - logits
    places: NDArray[np.intp] | None = None
    possible = surprises.min() + np.float32(NEGLIGIBLE)
    if surprises.max() > possible:
        places = np.flatnonzero(surprises <= possible)
        surprises = surprises[places]
    weights = np.exp(-surprises)
    entropy = np.float32((weights * surprises).sum(dtype=np.float64))
    kept = until(np.abs(surprises - entropy), typical_p, side="right", weights=weights)
    return kept if places is None else places[kept]


@lru_cache(BIASES_KEPT)
def _biases(biases: tuple[tuple[Token, float], ...]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """As arrays; a generation asks for the same ones at each token."""
    return np.array([token for token, _ in biases], np.int64), np.array([bias for _, bias in biases], np.float32)
