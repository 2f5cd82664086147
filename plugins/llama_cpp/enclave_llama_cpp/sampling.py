"""Chooses the next token from a row of logits: llama.cpp's filters, then our own draw.

The draw is a function of the row and a number alone, as `SampleRow.draw` says, so that a seed means the same in every
backend; llama.cpp's own `dist` keeps a generator of its own. Called by the engine, a row at a time.
"""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from typing import Any, cast

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from enclaved.plugin.engine import EngineError, Sampling

CHAINS_MAX = 64
"""Filter chains kept: one for each combination of settings lately used."""

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
"""`struct llama_token_data`."""


class Sampler:
    """Filters and draws for one vocabulary size. Not for several threads."""

    def __init__(self, vocabulary_size: int) -> None:
        self._size = vocabulary_size
        self._ids: NDArray[np.int32] = np.arange(vocabulary_size, dtype=np.int32)
        self._candidates = np.zeros(vocabulary_size, dtype=_CANDIDATE)
        self._chains: OrderedDict[tuple[int, float, float], Any] = OrderedDict()

    def choose(self, logits: NDArray[np.float32], sampling: Sampling, draw: float) -> int:
        """The chosen token's id. `logits`: float32[vocabulary]. Raises EngineError when they are no numbers."""
        best = int(np.argmax(logits))  # the lowest id among equals; a NaN, if there is one
        if not np.isfinite(logits[best]):
            raise EngineError("the model computed no usable probabilities (its logits are not finite numbers)")
        if sampling.temperature <= 0:
            return best
        ids, kept = self._filtered(logits, sampling)
        return drawn(ids, kept, sampling.temperature, draw)

    def _filtered(
        self, logits: NDArray[np.float32], sampling: Sampling
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Ids and logits of the tokens that pass top-k, top-p and min-p, in any order."""
        if sampling.top_k <= 0 and sampling.top_p >= 1 and sampling.min_p <= 0:
            return self._ids, logits
        candidates = self._candidates
        candidates["id"] = self._ids
        candidates["logit"] = logits
        array = llama_cpp.llama_token_data_array(
            data=ctypes.cast(candidates.ctypes.data, llama_cpp.llama_token_data_p),
            size=self._size,
            selected=-1,
            sorted=False,
        )
        llama_cpp.llama_sampler_apply(self._chain(sampling), cast("Any", ctypes.byref(array)))
        # Filters work in place, except that the interface lets one bring an array of its own: read where it points.
        address = ctypes.cast(array.data, ctypes.c_void_p).value or 0
        kept: NDArray[Any] = np.frombuffer(ctypes.string_at(address, array.size * _CANDIDATE.itemsize), _CANDIDATE)
        return kept["id"], kept["logit"]

    def _chain(self, sampling: Sampling) -> Any:
        key = (sampling.top_k, sampling.top_p, sampling.min_p)
        chain = self._chains.get(key)
        if chain is not None:
            self._chains.move_to_end(key)
            return chain
        chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        # The chain owns and frees its filters. A filter that is off is left out. Without top-k, top-p has to sort all
        # of the vocabulary (9 ms for 128,000 tokens); to put a top-k of ours before it would change what was asked.
        if sampling.top_k > 0:
            top_k = min(sampling.top_k, self._size)
            llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_top_k(top_k))
        if sampling.top_p < 1:
            llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_top_p(max(sampling.top_p, 0.0), 1))
        if sampling.min_p > 0:
            llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_min_p(min(sampling.min_p, 1.0), 1))
        self._chains[key] = chain
        if len(self._chains) > CHAINS_MAX:
            _, oldest = self._chains.popitem(last=False)
            llama_cpp.llama_sampler_free(oldest)
        return chain

    def free(self) -> None:
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
