"""Penalties and DRY: what a token costs because of the tokens before it, by llama.cpp's own samplers.

These samplers learn the tokens one by one. So each sequence has a pair of its own, which is taught only what has come
since; when the tokens before are others than it was taught, it starts anew. The outcome depends on the tokens alone.
"""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from enclave_llama_cpp.candidates import CANDIDATE, applied
from enclaved.plugin.engine import EngineError, Sampling, Token

PROTOTYPES_MAX = 16


class _Penalties(NamedTuple):
    repeat: float
    frequency: float
    presence: float
    last_n: int


class _Dry(NamedTuple):
    multiplier: float
    base: float
    allowed_length: int
    last_n: int
    breakers: tuple[str, ...]


_Key = tuple[_Penalties | None, _Dry | None]


@dataclass
class _Taught:
    """A sequence's samplers, and what they were taught."""

    key: _Key
    window: int
    """They know nothing of what lies further back."""
    chain: Any
    count: int = 0
    tokens: list[Token] = field(default_factory=list[Token])
    """The last of these `count`, as many as the window holds."""
    seen: set[Token] = field(default_factory=set[Token])
    """All in `tokens`, and some that were."""
    ids: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    """`seen` as an array."""

    def teach(self, history: Sequence[Token], vocabulary_size: int) -> None:
        """Brings them to know the history. Raises EngineError for an id that is no token: llama.cpp doesn't look."""
        held = len(self.tokens)
        if self.tokens != list(history[self.count - held : self.count]):
            llama_cpp.llama_sampler_reset(self.chain)
            self.count, self.tokens, self.seen, self.ids = 0, [], set(), np.zeros(0, np.int32)
        new = history[max(self.count, len(history) - self.window) :]
        if not new:
            return
        if min(new) < 0 or max(new) >= vocabulary_size:
            raise EngineError(f"the history names a token outside the vocabulary of {vocabulary_size}")
        for token in new:
            llama_cpp.llama_sampler_accept(self.chain, token)
        self.count = len(history)
        self.tokens += new
        del self.tokens[: -self.window]
        unseen = set(new) - self.seen
        if len(self.seen) + len(unseen) > 2 * self.window:
            self.seen = set(self.tokens)
            self.ids = np.fromiter(self.seen, np.int32, len(self.seen))
        elif unseen:
            self.seen |= unseen
            self.ids = np.concatenate([self.ids, np.fromiter(unseen, np.int32, len(unseen))])


class HistoryFilters:
    """For one vocabulary. `cells`: no sequence holds more tokens. Not for several threads."""

    def __init__(self, vocabulary: Any, vocabulary_size: int, cells: int) -> None:
        self._vocabulary = vocabulary
        self._size = vocabulary_size
        self._cells = cells
        self._prototypes: OrderedDict[_Dry, Any] = OrderedDict()
        self._of_sequence: dict[int, _Taught] = {}

    def apply(self, logits: NDArray[np.float32], sequence: int, sampling: Sampling, history: Sequence[Token]) -> None:
        """Lowers the logits of tokens that came before, in place. Only those are handed to llama.cpp: what it takes off
        one does not depend on the others. Raises EngineError for a history with what is no token."""
        key = self._key(sampling)
        if not history or key == (None, None):
            return
        taught = self._of_sequence.get(sequence)
        if taught is None or taught.key != key:
            self.forget(sequence)
            taught = self._of_sequence[sequence] = self._untaught(key)
        taught.teach(history, self._size)
        candidates = np.zeros(len(taught.ids), dtype=CANDIDATE)
        candidates["id"] = taught.ids
        candidates["logit"] = logits[taught.ids]
        kept = applied(taught.chain, candidates)
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
        penalties = _Penalties(
            sampling.repeat_penalty,
            sampling.frequency_penalty,
            sampling.presence_penalty,
            self._window(sampling.penalty_last_n),
        )
        dry = _Dry(
            sampling.dry_multiplier,
            max(1.0, sampling.dry_base),
            sampling.dry_allowed_length,
            self._window(sampling.dry_last_n),
            sampling.dry_breakers,
        )
        penalises = penalties[:3] != (1, 0, 0) and penalties.last_n
        return penalties if penalises else None, dry if dry.multiplier and dry.last_n else None

    def _window(self, last_n: int) -> int:
        """llama.cpp makes room for all of the window at once."""
        return self._cells if last_n < 0 else min(last_n, self._cells)

    def _untaught(self, key: _Key) -> _Taught:
        penalties, dry = key
        dry_sampler = llama_cpp.llama_sampler_clone(self._prototype(dry)) if dry else None
        chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        if penalties:
            sampler = llama_cpp.llama_sampler_init_penalties(
                self._size, penalties.last_n, penalties.repeat, penalties.frequency, penalties.presence
            )
            llama_cpp.llama_sampler_chain_add(chain, sampler)
        if dry_sampler:
            llama_cpp.llama_sampler_chain_add(chain, dry_sampler)
        return _Taught(key, max(each.last_n for each in key if each), chain)

    def _prototype(self, dry: _Dry) -> Any:
        """To be cloned: it looks through the whole vocabulary for each of its breakers when it is made, 8 ms for
        128,000 tokens."""
        prototype = self._prototypes.get(dry)
        if prototype is not None:
            self._prototypes.move_to_end(dry)
            return prototype
        if self._vocabulary is None:
            raise EngineError("DRY needs a vocabulary with texts")
        texts = (ctypes.c_char_p * len(dry.breakers))(*[text.encode("utf-8", "replace") for text in dry.breakers])
        prototype = self._prototypes[dry] = cast("Any", llama_cpp).llama_sampler_init_dry(
            self._vocabulary,
            dry.multiplier,
            dry.base,
            dry.allowed_length,
            dry.last_n,
            ctypes.cast(texts, ctypes.POINTER(ctypes.c_char_p)),
            len(dry.breakers),
        )
        if len(self._prototypes) > PROTOTYPES_MAX:
            llama_cpp.llama_sampler_free(self._prototypes.popitem(last=False)[1])
        return prototype
