"""The arrays of a `llama_batch`, seen through numpy so that a whole chunk of tokens is one assignment.

The engine fills one before each `llama_decode` and keeps it for its life. It checks nothing: what doesn't belong
into a batch has been refused before.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray


class Batch:
    """Room for `tokens_max` tokens, each of one sequence."""

    def __init__(self, tokens_max: int) -> None:
        self.tokens_max = tokens_max
        self.count = 0
        self._batch: Any = llama_cpp.llama_batch_init(tokens_max, 0, 1)
        self._tokens = _int32_view(self._batch.token, tokens_max)
        self._positions = _int32_view(self._batch.pos, tokens_max)
        self._sequence_counts = _int32_view(self._batch.n_seq_id, tokens_max)
        self._wants_logits: NDArray[np.int8] = np.ctypeslib.as_array(
            ctypes.cast(self._batch.logits, ctypes.POINTER(ctypes.c_int8)), (tokens_max,)
        )
        # seq_id is an array of pointers, one a token. They are pointed once at the items of an array of ours; the
        # pointers that llama_batch_init allocated go back before llama_batch_free, which frees them.
        self._sequences: NDArray[np.int32] = np.zeros(tokens_max, dtype=np.int32)
        self._pointers: NDArray[np.uintp] = np.ctypeslib.as_array(
            ctypes.cast(self._batch.seq_id, ctypes.POINTER(ctypes.c_size_t)), (tokens_max,)
        )
        self._own_pointers = self._pointers.copy()
        self._pointers[:] = self._sequences.ctypes.data + np.arange(tokens_max, dtype=np.uintp) * np.uintp(4)
        self._sequence_counts[:] = 1

    def clear(self) -> None:
        self.count = 0

    def add(
        self, sequence: int, position: int, tokens: Sequence[int], wants_logits: bool, *, everywhere: bool = False
    ) -> int:
        """Adds consecutive tokens; returns the index of the last, which alone has outputs unless `everywhere`."""
        start, end = self.count, self.count + len(tokens)
        self._tokens[start:end] = tokens
        self._positions[start:end] = np.arange(position, position + len(tokens), dtype=np.int32)
        self._sequences[start:end] = sequence
        self._wants_logits[start:end] = everywhere
        self._wants_logits[end - 1] = wants_logits
        self.count = end
        return end - 1

    def decode(self, context: Any) -> int:
        """`llama_decode` of what was added; its return code."""
        self._batch.n_tokens = self.count
        return int(llama_cpp.llama_decode(context, self._batch))

    def encode(self, context: Any) -> int:
        """`llama_encode` of what was added; its return code."""
        self._batch.n_tokens = self.count
        return int(llama_cpp.llama_encode(context, self._batch))

    def free(self) -> None:
        self._pointers[:] = self._own_pointers
        llama_cpp.llama_batch_free(self._batch)


def _int32_view(pointer: Any, count: int) -> NDArray[np.int32]:
    return np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_int32)), (count,))
