"""Penalties and DRY: what a token costs because of the tokens before it, by llama.cpp's own samplers.

These samplers learn the tokens one by one. So each sequence has a pair of its own, which is taught only what has come
since; when the tokens before are others than it was taught, it starts anew. The outcome depends on the tokens alone.
"""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from enclave_llama_cpp.candidates import CANDIDATE, applied
from enclaved.plugin.engine import Sampling, Token

PROTOTYPES_MAX = 16

_Key = tuple[float, float, float, int, float, float, int, int, tuple[str, ...]]


@dataclass
class _Taught:
    key: _Key
    chain: Any
    tokens: list[Token] = field(default_factory=list[Token])


class HistoryFilters:
    """For one vocabulary. `cells`: no sequence holds more tokens. Not for several threads."""

    def __init__(self, vocabulary: Any, vocabulary_size: int, cells: int) -> None:
        self._vocabulary = vocabulary
        self._size = vocabulary_size
        self._cells = cells
        self._prototypes: OrderedDict[_Key, Any] = OrderedDict()
        self._of_sequence: dict[int, _Taught] = {}

    def apply(self, logits: NDArray[np.float32], sequence: int, sampling: Sampling, history: Sequence[Token]) -> None:
        """Lowers the logits of tokens that came before, in place. Only those are handed to llama.cpp: what it takes off
        one does not depend on the others."""
        key = self._key(sampling)
        window = max(key[3], key[7])
        if not history or window == 0:
            return
        ids: NDArray[np.int32] = np.unique(np.array(history[-window:], dtype=np.int32))
        candidates = np.zeros(len(ids), dtype=CANDIDATE)
        candidates["id"] = ids
        candidates["logit"] = logits[ids]
        kept = applied(self._taught(key, sequence, history).chain, candidates)
        logits[kept["id"]] = kept["logit"]

    def forget(self, sequence: int) -> None:
        """The sequence is empty."""
        taught = self._of_sequence.pop(sequence, None)
        if taught is not None:
            llama_cpp.llama_sampler_free(taught.chain)

    def free(self) -> None:
        for sequence in list(self._of_sequence):
            self.forget(sequence)
        while self._prototypes:
            llama_cpp.llama_sampler_free(self._prototypes.popitem()[1])

    def _key(self, sampling: Sampling) -> _Key:
        penalises = sampling.repeat_penalty != 1 or sampling.frequency_penalty != 0 or sampling.presence_penalty != 0
        last_n = self._window(sampling.penalty_last_n) if penalises else 0
        dry_last_n = self._window(sampling.dry_last_n) if sampling.dry_multiplier != 0 else 0
        return (
            sampling.repeat_penalty,
            sampling.frequency_penalty,
            sampling.presence_penalty,
            last_n,
            sampling.dry_multiplier,
            max(1.0, sampling.dry_base),
            sampling.dry_allowed_length,
            dry_last_n,
            sampling.dry_breakers,
        )

    def _window(self, last_n: int) -> int:
        """llama.cpp makes room for all of the window at once."""
        return self._cells if last_n < 0 else min(last_n, self._cells)

    def _taught(self, key: _Key, sequence: int, history: Sequence[Token]) -> _Taught:
        taught = self._of_sequence.get(sequence)
        if taught is None or taught.key != key:
            self.forget(sequence)
            taught = self._of_sequence[sequence] = _Taught(key, llama_cpp.llama_sampler_clone(self._prototype(key)))
        known = len(taught.tokens)
        if taught.tokens != list(history[:known]):
            llama_cpp.llama_sampler_reset(taught.chain)
            taught.tokens = []
            known = 0
        # No window looks back further than the cells, so what lies before need not be taught.
        for token in history[max(known, len(history) - self._cells) :]:
            if 0 <= token < self._size:
                llama_cpp.llama_sampler_accept(taught.chain, token)
        taught.tokens += history[known:]
        return taught

    def _prototype(self, key: _Key) -> Any:
        """To be cloned: DRY looks through the whole vocabulary for its breakers when it is made."""
        chain = self._prototypes.get(key)
        if chain is not None:
            self._prototypes.move_to_end(key)
            return chain
        repeat, frequency, presence, last_n, multiplier, base, allowed_length, dry_last_n, breakers = key
        chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        if last_n:
            penalties = llama_cpp.llama_sampler_init_penalties(self._size, last_n, repeat, frequency, presence)
            llama_cpp.llama_sampler_chain_add(chain, penalties)
        if dry_last_n:
            texts = (ctypes.c_char_p * len(breakers))(*[text.encode("utf-8", "replace") for text in breakers])
            dry: Any = cast("Any", llama_cpp).llama_sampler_init_dry(
                self._vocabulary,
                multiplier,
                base,
                allowed_length,
                dry_last_n,
                ctypes.cast(texts, ctypes.POINTER(ctypes.c_char_p)),
                len(breakers),
            )
            llama_cpp.llama_sampler_chain_add(chain, dry)
        self._prototypes[key] = chain
        if len(self._prototypes) > PROTOTYPES_MAX:
            llama_cpp.llama_sampler_free(self._prototypes.popitem(last=False)[1])
        return chain
