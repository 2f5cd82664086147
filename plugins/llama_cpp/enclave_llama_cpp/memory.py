"""How much memory an instance needs, from its header and placement alone, and how its weights are best loaded.

Pure. The daemon's half estimates with it before a load; the engine takes the same choices at the load, so that both
speak of the same thing. Figures were checked against the buffer sizes that llama.cpp 0.3.36 logs.
"""

from __future__ import annotations

from typing import Literal

from enclave_llama_cpp.tensor_types import repacked_types
from enclaved.plugin.engine import MemoryUse, Placement
from enclaved.plugin.model import ModelHeader

BATCH_TOKENS = 512
MICRO_BATCH_TOKENS = 128
"""Tokens computed at once. On a CPU more brings no speed (measured: 128 and 512 within 3 %), but four times the
compute buffer, and an interrupted step loses more."""
MICRO_BATCH_TOKENS_GPU = 512
CONTEXT_STEP = 256
"""llama.cpp rounds each sequence's context up to a multiple of this."""
POOL_TOKENS = 512
"""In a call every token looks at all others of it, also of other texts, though that counts for nothing: more texts at
once are no gain (measured with MiniLM and texts of 20 tokens)."""
POOL_TEXTS = 64
RESTING_FACTOR = 4
SEQUENCES_MAX = 64
F32_BYTES = 4
F16_BYTES = 2

KvType = Literal["f32", "f16", "q8_0"]
Q8_0_BLOCK_ELEMENTS = 32


def micro_batch_tokens(placement: Placement) -> int:
    return MICRO_BATCH_TOKENS_GPU if placement.gpu_layers else MICRO_BATCH_TOKENS


def padded_context(placement: Placement) -> int:
    """Cells that one sequence may use: of its own, or of those of all."""
    return _padded(placement.context)


def is_unified(placement: Placement) -> bool:
    """Whether all sequences take their cells from one pool, instead of having a whole context each.

    In a pool a step looks at the cells of all sequences, in attention that is: measured on a CPU with 8 sequences of
    1,000 tokens, a step of one took 1.4 times as long as with cells of its own, a step of all 8 1.2 times; with 16 of
    100 tokens 1.2 and 1.3 times. So there is one only where there is not room for a whole context each, or on a GPU,
    which sees that as one tensor anyway.
    """
    return placement.gpu_layers > 0 or cells(placement) < padded_context(placement) * placement.sequences


def cells(placement: Placement) -> int:
    """Tokens that all sequences may hold together."""
    each = padded_context(placement)
    if placement.cache_tokens is None:
        return each * placement.sequences
    return min(max(each, _padded(placement.cache_tokens)), each * placement.sequences)


def sequence_ids(placement: Placement) -> int:
    """Sequences that there are: in a pool, some more than may run, for the tokens of finished requests to stay in."""
    if not is_unified(placement):
        return placement.sequences
    return max(placement.sequences, min(placement.sequences * RESTING_FACTOR, SEQUENCES_MAX))


def makes_vectors(header: ModelHeader) -> bool:
    """Whether a model was made for vectors or scores of texts, not to generate."""
    return "generate" not in header.capabilities and not {"embed", "rerank"}.isdisjoint(header.capabilities)


def pool_tokens(placement: Placement) -> int:
    """Tokens of texts that are evaluated at once where vectors are made: at least the longest text's."""
    return max(padded_context(placement), POOL_TOKENS)


def _padded(tokens: int) -> int:
    return -(-max(tokens, 1) // CONTEXT_STEP) * CONTEXT_STEP


def kv_type(header: ModelHeader, placement: Placement) -> KvType:
    """The type really used. llama.cpp makes no context with quantised values unless flash attention is on and the
    head's size is a multiple of the block: then f16."""
    if placement.kv_type != "q8_0":
        return placement.kv_type
    fits = header.key_length % Q8_0_BLOCK_ELEMENTS == 0 and header.value_length % Q8_0_BLOCK_ELEMENTS == 0
    return "q8_0" if fits and placement.flash_attention is not False else "f16"


def kv_row_bytes(elements: int, used: KvType) -> int:
    """Bytes of one token's keys, or values, in one layer."""
    if used == "q8_0":
        return -(-elements // Q8_0_BLOCK_ELEMENTS) * 34
    return elements * (4 if used == "f32" else 2)


def repacked_bytes(header: ModelHeader, machine: str) -> int:
    types = repacked_types(machine)
    return sum(nbytes for name, nbytes in header.tensor_types.items() if name in types)


def maps_weights(header: ModelHeader, machine: str) -> bool:
    """Whether to map the file rather than to read it.

    Mapped pages can be shared and reclaimed, but repacked weights would then be there twice: in the file's pages and
    in the repacked copy (measured: 406 MiB against 236 for 228 MiB of Q4_0).
    """
    return repacked_bytes(header, machine) * 10 < header.weights_bytes


def estimate(header: ModelHeader, placement: Placement, machine: str) -> MemoryUse:
    """Bytes that an instance of `header` will hold, all devices together.

    weights: as in the file. KV: for each layer, its key/value heads x (key + value length) x cells of all sequences.
    compute: llama.cpp's graph for one micro batch or, if larger, its logits, whose room is shared; and the logits it
    hands out, a row for each sequence. repacked: that copy where weights are mapped; where not, it is all there is.
    """
    if makes_vectors(header):
        return _estimate_pooling(header, placement, machine)
    used = kv_type(header, placement)
    row_bytes = sum(
        kv_row_bytes(heads * header.key_length, used) + kv_row_bytes(heads * header.value_length, used)
        for heads in header.head_count_kv
    )
    logits_bytes = sequence_ids(placement) * header.vocabulary_size * F32_BYTES
    return MemoryUse(
        weights_bytes=header.weights_bytes,
        kv_bytes=row_bytes * cells(placement),
        compute_bytes=max(_graph_bytes(header, placement), logits_bytes) + logits_bytes,
        repacked_bytes=repacked_bytes(header, machine) if maps_weights(header, machine) else 0,
    )


def _estimate_pooling(header: ModelHeader, placement: Placement, machine: str) -> MemoryUse:
    """Of a model that makes vectors: a call's texts are one micro batch, with a row of scores for each head unless
    flash attention saves that, and with keys and values if the model is a decoder."""
    tokens = pool_tokens(placement)
    scores = 1 + (header.head_count if placement.flash_attention is False else 0)
    rows = header.key_length + header.value_length
    return MemoryUse(
        weights_bytes=header.weights_bytes,
        kv_bytes=tokens * sum(header.head_count_kv) * rows * F16_BYTES,
        compute_bytes=tokens * F32_BYTES * (12 * header.embedding_length + scores * tokens),
        repacked_bytes=repacked_bytes(header, machine) if maps_weights(header, machine) else 0,
    )


def _graph_bytes(header: ModelHeader, placement: Placement) -> int:
    """The intermediate tensors of one micro batch that are alive at the same time.

    A token of it needs its activations (the header has no feed-forward width; measured: twelve embeddings, as float32)
    and a row of the attention mask, as wide as a sequence's context: float16 with flash attention, else float32 and a
    row of scores for each head. Flash attention has float16 copies made of one layer's float32 keys and values.
    """
    context = padded_context(placement)
    activations_bytes = 12 * header.embedding_length * F32_BYTES
    if placement.flash_attention is False:
        attention_bytes = context * F32_BYTES * (1 + header.head_count)
        copies_bytes = 0
    else:
        attention_bytes = context * F16_BYTES
        heads_max = max(header.head_count_kv, default=0)
        row_bytes = heads_max * (header.key_length + header.value_length) * F16_BYTES
        copies_bytes = cells(placement) * row_bytes if placement.kv_type == "f32" else 0
    return micro_batch_tokens(placement) * (activations_bytes + attention_bytes) + copies_bytes
