"""Chooses the next token from a row of logits: llama.cpp's filters, then our own draw.

The draw is a function of the row and a number alone, as `SampleRow.draw` says, so that a seed means the same in every
backend; llama.cpp's own `dist` keeps a generator of its own. Called by the engine, a row at a time.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from enclave_llama_cpp.candidates import CANDIDATE, applied
from enclave_llama_cpp.logprobs import likeliest, log_normaliser
from enclave_llama_cpp.sampling_history import HistoryFilters
from enclaved.plugin.engine import EngineError, Sampled, SampleRow, Token

CHAINS_MAX = 64
"""Filter chains kept: one for each combination of settings lately used."""
NEGLIGIBLE = 80.0
"""A logit so far below the highest has a probability that float32 cannot tell from 0; some filters take logarithms."""
MIROSTAT_TOKENS = 100
"""From how many of the likeliest tokens version 1 estimates the distribution, as in its paper."""

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
        """The chosen token. `logits`: float32[vocabulary], left as they are. Raises EngineError when they are no
        numbers, or when every token is forbidden."""
        sampling = row.sampling
        # Also the lowest id among equals; a NaN, if there is one.
        if not np.isfinite(logits[int(np.argmax(logits))]):
            raise EngineError("the model computed no usable probabilities (its logits are not finite numbers)")
        changed = self._changed(logits, row)
        best = int(np.argmax(changed))
        if not np.isfinite(changed[best]):
            raise EngineError("logit_bias forbids every token that the model could go on with")
        mu: float | None = None
        if sampling.temperature <= 0:
            token = best
        elif sampling.mirostat:
            token, mu = self._steered(changed, row)
        else:
            ids, kept = self._filtered(changed, row)
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
        for token, bias in sampling.logit_bias:
            changed[token] += np.float32(bias)
        if sampling.looks_back:
            self._history.apply(changed, row.sequence, sampling, row.history)
        return changed

    def _filtered(self, logits: NDArray[np.float32], row: SampleRow) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Ids and logits of the tokens that pass the filters, in any order."""
        sampling = row.sampling
        xtc = row.filter_draw < sampling.xtc_probability
        key: _Key = (
            sampling.top_k,
            sampling.typical_p,
            sampling.top_p,
            sampling.min_p,
            sampling.xtc_threshold if xtc else 1.0,
        )
        chain = self._chain(key)
        if chain is None:
            return self._ids, logits
        candidates = self._candidates
        candidates["id"] = self._ids
        candidates["logit"] = logits
        if sampling.typical_p < 1 or xtc:
            # Neither may meet what is impossible: the one takes its logarithm, the other may prefer it.
            candidates = candidates[logits >= logits.max() - np.float32(NEGLIGIBLE)]
        kept = applied(chain, candidates)
        return kept["id"], kept["logit"]

    def _chain(self, key: _Key) -> Any:
        """llama.cpp's filters, the likes of which are kept; None when all are off."""
        chain = self._chains.get(key)
        if chain is not None:
            self._chains.move_to_end(key)
            return chain
        top_k, typical_p, top_p, min_p, xtc_threshold = key
        # A filter that is off is left out. Without top-k, typical and top-p have to sort all of the vocabulary (19 and
        # 9 ms for 128,000 tokens); to put a top-k of ours before them would change what was asked.
        filters: list[Any] = []
        if top_k > 0:
            filters.append(llama_cpp.llama_sampler_init_top_k(min(top_k, self._size)))
        if typical_p < 1:
            filters.append(llama_cpp.llama_sampler_init_typical(max(typical_p, 0.0), 1))
        if top_p < 1:
            filters.append(llama_cpp.llama_sampler_init_top_p(max(top_p, 0.0), 1))
        if min_p > 0:
            filters.append(llama_cpp.llama_sampler_init_min_p(min(min_p, 1.0), 1))
        if xtc_threshold <= XTC_THRESHOLD_MAX:
            # Whether it applies is decided by the row's own draw: here it always does.
            filters.append(llama_cpp.llama_sampler_init_xtc(1.0, max(xtc_threshold, 0.0), 1, 0))
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
        """Mirostat: the chosen token and the state after it (Basu et al.: Mirostat, 2021).

        llama.cpp's sampler keeps its state mu to itself, but begins with twice its tau. So one is made for each token,
        of which only the truncation is used.
        """
        sampling = row.sampling
        mu = 2 * sampling.mirostat_tau if row.mirostat_mu is None else row.mirostat_mu
        with np.errstate(over="ignore"):
            hot = ((logits.astype(np.float64) - float(logits.max())) / sampling.temperature).astype(np.float32)
        ids = np.flatnonzero(hot > -NEGLIGIBLE)
        candidates = np.zeros(len(ids), dtype=CANDIDATE)
        candidates["id"] = ids
        candidates["logit"] = hot[ids]
        if sampling.mirostat == 1:
            steering = llama_cpp.llama_sampler_init_mirostat(
                self._size, 0, mu / 2, sampling.mirostat_eta, MIROSTAT_TOKENS
            )
        else:
            steering = llama_cpp.llama_sampler_init_mirostat_v2(0, mu / 2, sampling.mirostat_eta)
        try:
            kept = applied(steering, candidates)
        finally:
            llama_cpp.llama_sampler_free(steering)
        token = drawn(kept["id"], kept["logit"], 1.0, row.draw)
        chosen = float(hot[token])
        surprise = (log_normaliser(kept["logit"]) - chosen) / math.log(2)
        return token, mu - sampling.mirostat_eta * (surprise - sampling.mirostat_tau)

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
    exact = logits.astype(np.float64)
    with np.errstate(over="ignore"):
        weights = np.exp((exact - exact.max()) / temperature)
    order: NDArray[np.intp] = np.lexsort((ids, -exact))
    cumulated: NDArray[np.float64] = np.cumsum(weights[order])
    total = float(cumulated[-1])
    place: np.intp = np.searchsorted(cumulated, draw * total, side="right")
    # Rounding may carry a draw just below 1 past the end, or onto tokens that have no probability at all.
    last: np.intp = np.searchsorted(cumulated, total, side="left")
    return int(ids[order[min(place, last)]])
