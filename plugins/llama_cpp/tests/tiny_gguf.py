"""Writes GGUF files for tests: any key, any tensor, and on request a Llama model so small that it loads at once."""

from __future__ import annotations

import random
import struct
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

U32, F32, BOOL, STRING, ARRAY, U64 = 4, 6, 7, 8, 9, 10
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", U32: "I", 5: "i", F32: "f", BOOL: "?", U64: "Q", 11: "q", 12: "d"}

Value = tuple[int, "int | float | bool | str | Sequence[int | float | str]"]
"""(type, value). A list is an array of that type."""


@dataclass(frozen=True)
class Tensor:
    """A tensor; `type_id` and `offset` may lie, `data` is what really gets written."""

    name: str
    dimensions: Sequence[int]
    data: bytes
    type_id: int = 0
    offset: int | None = None


@dataclass
class Gguf:
    """The parts of a file, for a test to change before `encode`."""

    pairs: dict[str, Value] = field(default_factory=dict[str, Value])
    tensors: list[Tensor] = field(default_factory=list[Tensor])
    version: int = 3
    alignment: int = 32
    pair_count: int | None = None
    tensor_count: int | None = None
    raw_pairs: bytes = b""
    """Written after the pairs, as they are."""

    def encode(self) -> bytes:
        tensor_count = len(self.tensors) if self.tensor_count is None else self.tensor_count
        pair_count = len(self.pairs) if self.pair_count is None else self.pair_count
        parts = [b"GGUF", struct.pack("<IQQ", self.version, tensor_count, pair_count)]
        parts += [encoded_pair(key, value) for key, value in self.pairs.items()]
        parts.append(self.raw_pairs)
        data = b""
        for tensor in self.tensors:
            offset = len(data) if tensor.offset is None else tensor.offset
            shape = struct.pack(f"<I{len(tensor.dimensions)}Q", len(tensor.dimensions), *tensor.dimensions)
            parts.append(encoded_string(tensor.name) + shape + struct.pack("<IQ", tensor.type_id, offset))
            data += tensor.data + bytes(-len(tensor.data) % self.alignment)
        header = b"".join(parts)
        return header + bytes(-len(header) % self.alignment) + data if self.tensors else header


def encoded_string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def encoded_pair(key: str, value: Value) -> bytes:
    kind, content = value
    if isinstance(content, str):
        return encoded_string(key) + struct.pack("<I", kind) + encoded_string(content)
    if isinstance(content, Sequence):
        items = b"".join(
            encoded_string(item) if isinstance(item, str) else struct.pack("<" + _FORMATS[kind], item)
            for item in content
        )
        return encoded_string(key) + struct.pack("<IIQ", ARRAY, kind, len(content)) + items
    return encoded_string(key) + struct.pack("<I" + _FORMATS[kind], kind, content)


def tiny_llama(*, seed: int = 0, context: int = 128, changes: Mapping[str, Value] | None = None) -> Gguf:
    """A Llama model with random weights: 2 layers, 32 wide, 4 heads on 2 key/value heads, 287 tokens (a letter each,
    and a byte each). Always the same for a seed."""
    width, heads_kv, head_length, feed_forward, layers = 32, 2, 8, 64, 2
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    tokens += [chr(ord("a") + number) for number in range(26)] + ["."]
    kinds = [2, 3, 3] + [6] * 256 + [1] * 28
    pairs: dict[str, Value] = {
        "general.architecture": (STRING, "llama"),
        "general.name": (STRING, "tiny"),
        "llama.context_length": (U32, context),
        "llama.embedding_length": (U32, width),
        "llama.block_count": (U32, layers),
        "llama.feed_forward_length": (U32, feed_forward),
        "llama.attention.head_count": (U32, width // head_length),
        "llama.attention.head_count_kv": (U32, heads_kv),
        "llama.attention.layer_norm_rms_epsilon": (F32, 1e-5),
        "llama.rope.dimension_count": (U32, head_length),
        "tokenizer.ggml.model": (STRING, "llama"),
        "tokenizer.ggml.tokens": (STRING, tokens),
        "tokenizer.ggml.scores": (F32, [-float(number) for number in range(len(tokens))]),
        "tokenizer.ggml.token_type": (5, kinds),
        "tokenizer.ggml.bos_token_id": (U32, 1),
        "tokenizer.ggml.eos_token_id": (U32, 2),
        "tokenizer.ggml.unknown_token_id": (U32, 0),
        "tokenizer.ggml.add_bos_token": (BOOL, True),
    }
    pairs.update(changes or {})
    chance = random.Random(seed)

    def weights(name: str, *dimensions: int) -> Tensor:
        count = 1
        for dimension in dimensions:
            count *= dimension
        numbers = array("f", (chance.gauss(0, 0.3) for _ in range(count)))
        return Tensor(name, dimensions, numbers.tobytes())

    def ones(name: str) -> Tensor:
        return Tensor(name, (width,), array("f", [1.0] * width).tobytes())

    tensors = [weights("token_embd.weight", width, len(tokens)), ones("output_norm.weight")]
    tensors.append(weights("output.weight", width, len(tokens)))
    for layer in range(layers):
        tensors += [
            ones(f"blk.{layer}.attn_norm.weight"),
            weights(f"blk.{layer}.attn_q.weight", width, width),
            weights(f"blk.{layer}.attn_k.weight", width, heads_kv * head_length),
            weights(f"blk.{layer}.attn_v.weight", width, heads_kv * head_length),
            weights(f"blk.{layer}.attn_output.weight", width, width),
            ones(f"blk.{layer}.ffn_norm.weight"),
            weights(f"blk.{layer}.ffn_gate.weight", width, feed_forward),
            weights(f"blk.{layer}.ffn_up.weight", width, feed_forward),
            weights(f"blk.{layer}.ffn_down.weight", feed_forward, width),
        ]
    return Gguf(pairs, tensors)


def tiny_bert(*, seed: int = 0, ranks: bool = False, context: int = 64) -> Gguf:
    """An encoder with random weights: 2 layers, 32 wide, 4 heads, a token for each letter. It pools by the
    mean; or gives a score, as a cross-encoder."""
    width, feed_forward, layers = 32, 64, 2
    letters = [chr(ord("a") + number) for number in range(26)]
    # The form that llama.cpp's WordPiece takes: a word's beginning has a ▁, its other pieces have none.
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"▁{letter}" for letter in letters), *letters]
    pairs: dict[str, Value] = {
        "general.architecture": (STRING, "bert"),
        "general.name": (STRING, "tiny encoder"),
        "bert.context_length": (U32, context),
        "bert.embedding_length": (U32, width),
        "bert.block_count": (U32, layers),
        "bert.feed_forward_length": (U32, feed_forward),
        "bert.attention.head_count": (U32, 4),
        "bert.attention.layer_norm_epsilon": (F32, 1e-5),
        "bert.attention.causal": (BOOL, False),
        "bert.pooling_type": (U32, 4 if ranks else 1),
        "tokenizer.ggml.model": (STRING, "bert"),
        "tokenizer.ggml.tokens": (STRING, tokens),
        "tokenizer.ggml.token_type": (5, [3] * 5 + [1] * 52),
        "tokenizer.ggml.token_type_count": (U32, 2),
        "tokenizer.ggml.unknown_token_id": (U32, 1),
        "tokenizer.ggml.bos_token_id": (U32, 2),
        "tokenizer.ggml.cls_token_id": (U32, 2),
        "tokenizer.ggml.eos_token_id": (U32, 3),
        "tokenizer.ggml.seperator_token_id": (U32, 3),
        "tokenizer.ggml.padding_token_id": (U32, 0),
        "tokenizer.ggml.mask_token_id": (U32, 4),
    }
    chance = random.Random(seed)

    def weights(name: str, *dimensions: int) -> Tensor:
        count = 1
        for dimension in dimensions:
            count *= dimension
        return Tensor(name, dimensions, array("f", (chance.gauss(0, 0.3) for _ in range(count))).tobytes())

    def norm(name: str) -> list[Tensor]:
        return [
            Tensor(f"{name}.weight", (width,), array("f", [1.0] * width).tobytes()),
            Tensor(f"{name}.bias", (width,), array("f", [0.0] * width).tobytes()),
        ]

    def linear(name: str, inputs: int, outputs: int) -> list[Tensor]:
        return [weights(f"{name}.weight", inputs, outputs), weights(f"{name}.bias", outputs)]

    tensors = [
        weights("token_embd.weight", width, len(tokens)),
        weights("token_types.weight", width, 2),
        weights("position_embd.weight", width, context),
        *norm("token_embd_norm"),
    ]
    for layer in range(layers):
        block = f"blk.{layer}"
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensors += linear(f"{block}.{part}", width, width)
        tensors += norm(f"{block}.attn_output_norm")
        tensors += linear(f"{block}.ffn_up", width, feed_forward)
        tensors += linear(f"{block}.ffn_down", feed_forward, width)
        tensors += norm(f"{block}.layer_output_norm")
    if ranks:
        tensors += linear("cls", width, width) + linear("cls.output", width, 1)
    return Gguf(pairs, tensors)
