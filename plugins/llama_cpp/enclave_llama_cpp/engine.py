"""The llama.cpp engine: a GGUF model that runs many sequences at once, on llama-cpp-python's low-level interface.

Lives in a worker process. llama.cpp ends the process over many kinds of wrong input (a batch too big, a token out of
range), so every argument is checked here before the library sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import llama_cpp
import numpy as np

from enclave_llama_cpp.batch import Batch
from enclave_llama_cpp.embedding import LlamaCppEmbedder
from enclave_llama_cpp.loaded import LoadedModel, Parts, check_placement, load_parts
from enclave_llama_cpp.loading import flash_attention
from enclave_llama_cpp.log import LoadLog
from enclave_llama_cpp.memory import (
    BATCH_TOKENS,
    cells,
    is_unified,
    kv_type,
    makes_vectors,
    micro_batch_tokens,
    sequence_ids,
)
from enclave_llama_cpp.sampling import Sampler
from enclaved.plugin.engine import (
    Capabilities,
    Engine,
    EngineError,
    InterruptedStepError,
    LoadError,
    LoadRequest,
    NoRoomError,
    Placement,
    Run,
    Sampled,
    SampleRow,
    SequenceId,
)

_KV_TYPES = {"f32": 0, "f16": 1, "q8_0": 8}
"""`enum ggml_type`."""

SHARE_TOKENS = 4
"""Fewer than these, such as a BOS, are not worth a call."""

_DECODE_OK, _DECODE_NO_ROOM, _DECODE_INTERRUPTED, _DECODE_BAD_BATCH = 0, 1, 2, -1


class LlamaCppEngine(LoadedModel):
    """See `Engine`."""

    def __init__(self, parts: Parts, placement: Placement) -> None:
        super().__init__(parts)
        model, context = parts.model, parts.context
        self._sliding_window = int(llama_cpp.llama_model_n_swa(model))
        keeps_state = bool(llama_cpp.llama_model_is_recurrent(model) or llama_cpp.llama_model_is_hybrid(model))
        self._is_unified = is_unified(placement)
        context_tokens = min(placement.context, int(llama_cpp.llama_n_ctx_seq(context)))
        # In a pool, sequences that share cells would all be shifted.
        can_shift = not keeps_state and not self._is_unified and bool(llama_cpp.llama_memory_can_shift(self._memory))
        self.capabilities = Capabilities(
            sequences=int(llama_cpp.llama_n_seq_max(context)),
            context=context_tokens,
            batch_tokens=int(llama_cpp.llama_n_batch(context)),
            cache_tokens=int(llama_cpp.llama_n_ctx(context)),
            # A recurrent state has no past to go back to.
            can_trim=not keeps_state,
            can_share=not keeps_state,
            # Without a pool all cells of the context are copied.
            share_tokens=SHARE_TOKENS if self._is_unified else max(SHARE_TOKENS, context_tokens // 64),
            can_shift=can_shift,
            threads="exact",
        )
        self._lengths = [0] * self.capabilities.sequences
        self._logit_rows: dict[int, int] = {}
        self._batch = Batch(self.capabilities.batch_tokens)
        self._sampler = Sampler(self.vocabulary.size, llama_cpp.llama_model_get_vocab(model), self.capabilities.context)

    @classmethod
    def load(cls, request: LoadRequest, progress: Callable[[float], bool]) -> Engine:
        if makes_vectors(request.header):
            return LlamaCppEmbedder.load(request, progress)
        parts = load_parts(request, progress, _make_context)
        try:
            return cls(parts, request.placement)
        except BaseException:
            parts.free()
            raise

    def forward(self, runs: Sequence[Run]) -> None:
        context = self._open()
        self._check_runs(runs)
        self._interrupted = False
        self._logit_rows.clear()
        self._batch.clear()
        rows: dict[int, int] = {}
        # Without a pool, llama.cpp computes together only what stands in the batch with consecutive sequence numbers.
        for run in sorted(runs, key=lambda run: run.sequence):
            last = self._batch.add(run.sequence, run.position, run.tokens, run.wants_logits)
            if run.wants_logits:
                rows[run.sequence] = last
        # A step that takes each sequence one token further is over before an interrupt would pay.
        self._set_interruptible(any(len(run.tokens) > 1 for run in runs))
        code = self._batch.decode(context)
        if code == _DECODE_OK:
            for run in runs:
                self._lengths[run.sequence] += len(run.tokens)
            self._logit_rows = rows
        elif code == _DECODE_NO_ROOM:
            raise NoRoomError("there are no free cells for this step")
        elif code == _DECODE_BAD_BATCH:
            raise EngineError("llama.cpp refused the step: its tokens, sequences or positions are wrong")
        else:
            self._settle(runs)
            if code == _DECODE_INTERRUPTED:
                raise InterruptedStepError("the step was interrupted")
            raise EngineError(f"llama.cpp could not compute the step (code {code})")

    def sample(self, rows: Sequence[SampleRow]) -> list[Sampled]:
        context = self._open()
        sampled: list[Sampled] = []
        for row in rows:
            index = self._logit_rows.get(row.sequence)
            pointer = None if index is None else llama_cpp.llama_get_logits_ith(context, index)
            if not pointer:
                raise EngineError(f"sequence {row.sequence} has no logits from the last step")
            logits = np.ctypeslib.as_array(cast("Any", pointer), (self.vocabulary.size,))
            sampled.append(self._sampler.choose(logits, row))
        return sampled

    def length(self, sequence: SequenceId) -> int:
        self._check_sequence(sequence)
        return self._lengths[sequence]

    def drop(self, sequence: SequenceId) -> None:
        self._open()
        self._check_sequence(sequence)
        llama_cpp.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        self._lengths[sequence] = 0
        self._logit_rows.pop(sequence, None)
        self._sampler.forget(sequence)

    def trim(self, sequence: SequenceId, length: int) -> bool:
        self._open()
        self._check_sequence(sequence)
        if not 0 <= length <= self._lengths[sequence]:
            raise EngineError(f"sequence {sequence} has {self._lengths[sequence]} tokens, it cannot be cut to {length}")
        if length == self._lengths[sequence]:
            return True
        if length == 0:
            self.drop(sequence)
            return True
        if not self.capabilities.can_trim or self._window_is_gone(sequence, length):
            return False
        if not llama_cpp.llama_memory_seq_rm(self._memory, sequence, length, -1):
            return False
        self._lengths[sequence] = length
        self._logit_rows.pop(sequence, None)
        return True

    def share(self, source: SequenceId, target: SequenceId, length: int) -> None:
        self._open()
        self._check_sequence(source)
        self._check_sequence(target)
        if not self.capabilities.can_share:
            raise EngineError("a recurrent state is of its whole sequence, it cannot be shared in part")
        if source == target or self._lengths[target]:
            raise EngineError(f"sequence {target} is not empty, it can take nothing over")
        if not 0 < length <= self._lengths[source]:
            raise EngineError(f"sequence {source} has {self._lengths[source]} tokens, not {length} to share")
        if self._is_unified:
            llama_cpp.llama_memory_seq_cp(self._memory, source, target, 0, length)
        else:
            # Only a whole sequence can be copied; a part would end the process.
            llama_cpp.llama_memory_seq_cp(self._memory, source, target, -1, -1)
            if not llama_cpp.llama_memory_seq_rm(self._memory, target, length, -1):
                llama_cpp.llama_memory_seq_rm(self._memory, target, -1, -1)
                raise EngineError(f"sequence {source} cannot be shared in part")
        self._lengths[target] = length

    def shift(self, sequence: SequenceId, start: int, count: int) -> None:
        self._open()
        self._check_sequence(sequence)
        if not self.capabilities.can_shift:
            raise EngineError("this model's sequences cannot be shifted")
        if not (start >= 0 and count > 0 and start + count <= self._lengths[sequence]):
            raise EngineError(
                f"sequence {sequence} has {self._lengths[sequence]} tokens, not {count} from {start} to take out"
            )
        if not llama_cpp.llama_memory_seq_rm(self._memory, sequence, start, start + count):
            raise EngineError(f"sequence {sequence} cannot be cut in the middle")
        llama_cpp.llama_memory_seq_add(self._memory, sequence, start + count, -1, -count)
        self._lengths[sequence] -= count
        self._logit_rows.pop(sequence, None)

    def _free(self) -> None:
        self._logit_rows.clear()
        self._sampler.free()
        self._batch.free()

    def __repr__(self) -> str:
        state = "closed" if self._context is None else f"lengths={self._lengths}"
        return f"<LlamaCppEngine {state} {self.capabilities}>"

    def _check_sequence(self, sequence: int) -> None:
        if not 0 <= sequence < len(self._lengths):
            raise EngineError(f"there is no sequence {sequence}; this engine has {len(self._lengths)}")

    def _check_runs(self, runs: Sequence[Run]) -> None:
        """Everything over which llama.cpp would fail, or end the process. Raises EngineError, NoRoomError."""
        if not runs:
            raise EngineError("a step needs at least one run")
        total = sum(len(run.tokens) for run in runs)
        if total > self.capabilities.batch_tokens:
            raise EngineError(f"a step of {total} tokens is too big; {self.capabilities.batch_tokens} are the most")
        if len({run.sequence for run in runs}) != len(runs):
            raise EngineError("a step may have one run a sequence only")
        for run in runs:
            self._check_sequence(run.sequence)
            if not run.tokens:
                raise EngineError(f"the run of sequence {run.sequence} has no tokens")
            if run.position != self._lengths[run.sequence]:
                raise EngineError(
                    f"sequence {run.sequence} has {self._lengths[run.sequence]} tokens, "
                    f"its run starts at {run.position}"
                )
            if not (min(run.tokens) >= 0 and max(run.tokens) < self.vocabulary.size):
                raise EngineError(f"the run of sequence {run.sequence} has tokens that are not in the vocabulary")
        for run in runs:
            if run.position + len(run.tokens) > self.capabilities.context:
                raise NoRoomError(
                    f"sequence {run.sequence} would have {run.position + len(run.tokens)} tokens; "
                    f"{self.capabilities.context} are the most"
                )

    def _settle(self, runs: Sequence[Run]) -> None:
        """Finds out what an unfinished step left, and makes it something to go on from.

        llama.cpp keeps the parts of the step that it had finished, without their logits. So a sequence that is
        complete but wanted logits gives its last token back. A recurrent state cannot: it is emptied.
        """
        for run in runs:
            length = int(llama_cpp.llama_memory_seq_pos_max(self._memory, run.sequence)) + 1
            self._lengths[run.sequence] = length
            if not self.capabilities.can_trim or (
                run.wants_logits
                and length == run.position + len(run.tokens)
                and not self.trim(run.sequence, SequenceId(length - 1))
            ):
                self.drop(run.sequence)

    def _window_is_gone(self, sequence: int, length: int) -> bool:
        """Whether a sliding window has dropped cells that the tokens after `length` would look at; llama.cpp cuts
        all the same, and goes on with wrong logits."""
        if not self._sliding_window:
            return False
        first = int(llama_cpp.llama_memory_seq_pos_min(self._memory, sequence))
        return first > 0 and first >= length - self._sliding_window


def _check_generates(model: Any) -> None:
    """Models that load, but don't work by predicting the next token from those before."""
    if llama_cpp.llama_model_has_encoder(model) or not llama_cpp.llama_model_has_decoder(model):
        raise LoadError("the model has an encoder; only models that generate text by themselves can be run yet")
    if llama_cpp.llama_model_is_diffusion(model):
        raise LoadError("the model generates by diffusion, which cannot be run yet")


def _make_context(model: Any, request: LoadRequest, log: LoadLog) -> Any:
    _check_generates(model)
    check_placement(request)
    placement = request.placement
    sequences_max = int(llama_cpp.llama_max_parallel_sequences())
    if not 1 <= placement.sequences <= sequences_max:
        raise LoadError(f"{placement.sequences} sequences at once are not possible; 1 to {sequences_max} are")
    used = kv_type(request.header, placement)
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = cells(placement)
    params.n_seq_max = sequence_ids(placement)
    params.n_batch = max(BATCH_TOKENS, sequence_ids(placement))
    params.n_ubatch = micro_batch_tokens(placement)
    # A row of logits a sequence: the default reserves one for each token of a batch.
    params.n_outputs_max = sequence_ids(placement)
    params.n_threads = params.n_threads_batch = placement.threads
    params.type_k = params.type_v = _KV_TYPES[used]
    params.flash_attn_type = flash_attention(placement.flash_attention, quantised=used == "q8_0")
    params.kv_unified = is_unified(placement)
    # All layers keep all tokens, also those with a sliding window: prefixes can be cut anywhere.
    params.swa_full = True
    params.no_perf = True
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        raise LoadError(f"{request.model} got no context: {log.reason}", out_of_memory=log.out_of_memory)
    if not llama_cpp.llama_get_memory(context):
        llama_cpp.llama_free(context)
        raise LoadError("the model keeps no context, so it cannot generate text")
    return context
