"""The bare loop: llama.cpp's decode calls and nothing else, as fast as Python can make them.

`python -m benchmarks.bare_loop MODEL unified|split SEQUENCES CONTEXT THREADS` reads requests as JSON lines, and answers
each with a line: `{"decode": streams}` with tokens a second, `{"prompt": tokens}` with the seconds to its first token.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from typing import Any, Protocol, cast

import llama_cpp as typed_llama_cpp
import numpy as np

llama_cpp = cast("Any", typed_llama_cpp)

PROMPT_TOKENS = 100
DECODE_STEPS = 64
BATCH_TOKENS = 2048
MICRO_BATCH_TOKENS = 512


def _say_nothing(level: int, text: bytes, data: object) -> None:
    pass


class BareLoop:
    """One context; every method begins with an empty cache."""

    def __init__(self, path: str, *, unified: bool, sequences: int, context: int, threads: int) -> None:
        self._quiet = llama_cpp.llama_log_callback(_say_nothing)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = context * sequences
        params.n_seq_max = sequences
        params.n_batch, params.n_ubatch = BATCH_TOKENS, MICRO_BATCH_TOKENS
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.kv_unified = unified
        params.no_perf = True
        self._context = llama_cpp.llama_init_from_model(model, params)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._vocabulary = int(llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model)))
        self._batch = llama_cpp.llama_batch_init(BATCH_TOKENS, 0, 1)
        self._numbers = np.random.default_rng(1)

    def decode(self, streams: int) -> float:
        """Tokens a second of so many streams, each with a prompt of its own."""
        self._clear()
        newest = [self._evaluate(number, PROMPT_TOKENS) for number in range(streams)]
        # As far into their answers as streams are on average that began one after the other.
        warm_steps = 3 * streams
        began = 0.0
        for step in range(warm_steps + DECODE_STEPS):
            if step == warm_steps:
                began = time.perf_counter()
            for number in range(streams):
                self._put(number, newest[number], PROMPT_TOKENS + step, number, wants_logits=True)
            self._decode(streams)
            newest = [self._likeliest(number) for number in range(streams)]
        return DECODE_STEPS * streams / (time.perf_counter() - began)

    def prompt(self, tokens: int) -> float:
        """Seconds from a prompt to its first token."""
        self._clear()
        began = time.perf_counter()
        self._evaluate(0, tokens)
        return time.perf_counter() - began

    def _clear(self) -> None:
        llama_cpp.llama_memory_clear(self._memory, True)

    def _evaluate(self, sequence: int, tokens: int) -> int:
        prompt = self._numbers.integers(300, self._vocabulary, tokens)
        for start in range(0, tokens, BATCH_TOKENS):
            part = prompt[start : start + BATCH_TOKENS]
            for index, token in enumerate(part):
                last = start + index == tokens - 1
                self._put(index, int(token), start + index, sequence, wants_logits=last)
            self._decode(len(part))
        return self._likeliest((tokens - 1) % BATCH_TOKENS)

    def _put(self, index: int, token: int, position: int, sequence: int, *, wants_logits: bool) -> None:
        batch = self._batch
        batch.token[index], batch.pos[index] = token, position
        batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
        batch.logits[index] = wants_logits

    def _decode(self, tokens: int) -> None:
        self._batch.n_tokens = tokens
        code = llama_cpp.llama_decode(self._context, self._batch)
        if code:
            raise RuntimeError(f"llama_decode: {code}")

    def _likeliest(self, index: int) -> int:
        row = llama_cpp.llama_get_logits_ith(self._context, index)
        return int(np.argmax(np.ctypeslib.as_array(row, (self._vocabulary,))))


class Loop(Protocol):
    """What is measured, a request at a time."""

    def decode(self, streams: int) -> float: ...

    def prompt(self, tokens: int) -> float: ...


def answer_requests(loop: Loop) -> None:
    """Answers requests until stdin ends."""
    for line in sys.stdin:
        request: dict[str, int] = json.loads(line)
        ((kind, amount),) = request.items()
        print(json.dumps(loop.decode(amount) if kind == "decode" else loop.prompt(amount)), flush=True)


def main() -> None:
    """A bare loop that answers requests."""
    path, cache, sequences, context, threads = sys.argv[1:]
    answer_requests(
        BareLoop(path, unified=cache == "unified", sequences=int(sequences), context=int(context), threads=int(threads))
    )


if __name__ == "__main__":
    main()
