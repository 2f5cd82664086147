"""The llama.cpp engine for models that make vectors or scores of texts: encoders, and decoders trained for it.

Lives in a worker process, like the engine that generates. It keeps nothing between two calls: each evaluates some texts
whole, side by side, and pools what comes out as the model says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import llama_cpp
import numpy as np

from enclave_llama_cpp.batch import Batch
from enclave_llama_cpp.loaded import LoadedModel, Parts, check_placement, load_parts
from enclave_llama_cpp.loading import flash_attention
from enclave_llama_cpp.log import LoadLog
from enclave_llama_cpp.memory import POOL_TEXTS, pool_tokens
from enclaved.plugin.engine import (
    Capabilities,
    EngineError,
    InterruptedStepError,
    LoadError,
    LoadRequest,
    Placement,
    Run,
    Sampled,
    SampleRow,
    SequenceId,
    Token,
)

_INTERRUPTED = 2


class LlamaCppEmbedder(LoadedModel):
    """See `Engine`; only `pool` computes anything."""

    def __init__(self, parts: Parts, placement: Placement) -> None:
        super().__init__(parts)
        model, context = parts.model, parts.context
        self._encodes = bool(llama_cpp.llama_model_has_encoder(model)) or not self._memory
        ranks = int(llama_cpp.llama_pooling_type(context)) == llama_cpp.LLAMA_POOLING_TYPE_RANK
        self._width = int(llama_cpp.llama_model_n_cls_out(model) if ranks else llama_cpp.llama_model_n_embd_out(model))
        batch_tokens = min(int(llama_cpp.llama_n_batch(context)), int(llama_cpp.llama_n_ubatch(context)))
        trained = int(llama_cpp.llama_model_n_ctx_train(model))
        self.capabilities = Capabilities(
            sequences=int(llama_cpp.llama_n_seq_max(context)),
            context=min(placement.context, batch_tokens, trained or batch_tokens),
            batch_tokens=batch_tokens,
            can_generate=False,
            can_embed=not ranks,
            can_rank=ranks,
            embedding_length=1 if ranks else self._width,
            threads="exact",
        )
        self._batch = Batch(batch_tokens)
        self._set_interruptible(True)

    @classmethod
    def load(cls, request: LoadRequest, progress: Callable[[float], bool]) -> LlamaCppEmbedder:
        parts = load_parts(request, progress, _make_context)
        try:
            return cls(parts, request.placement)
        except BaseException:
            parts.free()
            raise

    def pool(self, texts: Sequence[Sequence[Token]]) -> list[bytes]:
        context = self._open()
        self._check(texts)
        if self._memory:
            llama_cpp.llama_memory_clear(self._memory, True)
        self._interrupted = False
        self._batch.clear()
        for number, text in enumerate(texts):
            # Pooling looks at every token, so each is an output.
            self._batch.add(number, 0, text, wants_logits=True, everywhere=True)
        code = self._batch.encode(context) if self._encodes else self._batch.decode(context)
        if code == _INTERRUPTED:
            raise InterruptedStepError("the step was interrupted")
        if code:
            raise EngineError(f"llama.cpp could not compute the texts (code {code})")
        return [self._pooled(context, number) for number in range(len(texts))]

    def forward(self, runs: Sequence[Run]) -> None:
        raise EngineError("this model makes vectors of texts; it generates none")

    def sample(self, rows: Sequence[SampleRow]) -> list[Sampled]:
        raise EngineError("this model makes vectors of texts; it generates none")

    def length(self, sequence: SequenceId) -> int:
        self._open()
        return 0

    def drop(self, sequence: SequenceId) -> None:
        self._open()

    def trim(self, sequence: SequenceId, length: int) -> bool:
        self._open()
        return length == 0

    def _free(self) -> None:
        self._batch.free()

    def __repr__(self) -> str:
        return f"<LlamaCppEmbedder {'closed' if self._context is None else self.capabilities}>"

    def _check(self, texts: Sequence[Sequence[Token]]) -> None:
        """Everything over which llama.cpp would fail, or end the process. Raises EngineError."""
        limits = self.capabilities
        if not 1 <= len(texts) <= limits.sequences:
            raise EngineError(f"{len(texts)} texts in one call; 1 to {limits.sequences} are possible")
        total = sum(map(len, texts))
        if total > limits.batch_tokens:
            raise EngineError(f"texts of {total} tokens in one call; {limits.batch_tokens} are the most")
        for number, text in enumerate(texts):
            if not 1 <= len(text) <= limits.context:
                raise EngineError(f"text {number} has {len(text)} tokens; 1 to {limits.context} are possible")
            if not (min(text) >= 0 and max(text) < self.vocabulary.size):
                raise EngineError(f"text {number} has tokens that are not in the vocabulary")

    def _pooled(self, context: Any, number: int) -> bytes:
        pointer: Any = llama_cpp.llama_get_embeddings_seq(context, number)
        if not pointer:
            raise EngineError(f"llama.cpp gave no vector for text {number}")
        values = np.ctypeslib.as_array(pointer, (self._width,))[: self.capabilities.embedding_length]
        if not np.isfinite(values).all():
            raise EngineError("the model computed no usable vector (its numbers are not finite)")
        return values.astype("<f4").tobytes()


def _make_context(model: Any, request: LoadRequest, log: LoadLog) -> Any:
    check_placement(request)
    placement = request.placement
    params = llama_cpp.llama_context_default_params()
    # Texts are evaluated whole, and no micro batch may be smaller than one.
    params.n_ctx = params.n_batch = params.n_ubatch = pool_tokens(placement)
    params.n_seq_max = POOL_TEXTS
    params.kv_unified = True
    params.n_threads = params.n_threads_batch = placement.threads
    params.flash_attn_type = flash_attention(placement.flash_attention, quantised=False)
    params.embeddings = True
    params.no_perf = True
    context = llama_cpp.llama_init_from_model(model, params)
    if context and int(llama_cpp.llama_pooling_type(context)) == llama_cpp.LLAMA_POOLING_TYPE_NONE:
        # The model doesn't say how: the mean of all tokens is what most were trained with.
        llama_cpp.llama_free(context)
        params.pooling_type = llama_cpp.LLAMA_POOLING_TYPE_MEAN
        context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        raise LoadError(f"{request.model} got no context: {log.reason}", out_of_memory=log.out_of_memory)
    return context
