"""A model of realistic size for benchmarks: 0.4 billion random weights in Q4_0. How fast a model runs does not depend
on its weights' values.

`python -m benchmarks.random_model PATH` writes it; the benchmarks write it once into their cache.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, cast

import gguf
import numpy as np

from enclave.paths import places

EMBEDDING = 1024
LAYERS = 28
HEADS, HEADS_KV = 16, 8
FEED_FORWARD = 2816
CONTEXT = 16_384
VOCABULARY = 32_000
SEED = 4
BLOCK_ELEMENTS, BLOCK_BYTES = 32, 18
"""Of Q4_0: a float16 scale and 32 numbers of 4 bits."""


def cached_model() -> Path:
    """The model's file, written now if it isn't there."""
    path = places(os.environ).cache / "benchmarks" / f"random-{EMBEDDING}x{LAYERS}-{SEED}.gguf"
    if not path.exists():
        print(f"writing {path} (220 MB, some seconds)", file=sys.stderr)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        write_model(unfinished)
        unfinished.replace(path)
    return path


def write_model(path: Path) -> None:
    """Writes the GGUF file; the same on every machine."""
    writer: Any = cast("Any", gguf).GGUFWriter(path, "llama")
    writer.add_name("random 0.4B")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(EMBEDDING)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS_KV)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(EMBEDDING // HEADS)
    writer.add_file_type(2)
    pieces = vocabulary()
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores([-float(number) for number in range(len(pieces))])
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (len(pieces) - 259))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    numbers = np.random.default_rng(SEED)

    def weights(name: str, inputs: int, outputs: int) -> None:
        blocks = inputs * outputs // BLOCK_ELEMENTS
        data = numbers.integers(0, 256, (blocks, BLOCK_BYTES), dtype=np.uint8)
        # Weights of about 1 / sqrt(inputs), so that activations neither vanish nor overflow.
        scale = np.float16(1 / (4.6 * inputs**0.5))
        data[:, :2] = np.frombuffer(scale.tobytes(), np.uint8)
        shaped = data.reshape(outputs, inputs // BLOCK_ELEMENTS * BLOCK_BYTES)
        writer.add_tensor(name, shaped, raw_dtype=cast("Any", gguf).GGMLQuantizationType.Q4_0)

    def ones(name: str) -> None:
        writer.add_tensor(name, np.ones(EMBEDDING, dtype=np.float32))

    width_kv = EMBEDDING // HEADS * HEADS_KV
    weights("token_embd.weight", EMBEDDING, len(pieces))
    weights("output.weight", EMBEDDING, len(pieces))
    ones("output_norm.weight")
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        ones(f"{block}.attn_norm.weight")
        weights(f"{block}.attn_q.weight", EMBEDDING, EMBEDDING)
        weights(f"{block}.attn_k.weight", EMBEDDING, width_kv)
        weights(f"{block}.attn_v.weight", EMBEDDING, width_kv)
        weights(f"{block}.attn_output.weight", EMBEDDING, EMBEDDING)
        ones(f"{block}.ffn_norm.weight")
        weights(f"{block}.ffn_gate.weight", EMBEDDING, FEED_FORWARD)
        weights(f"{block}.ffn_up.weight", EMBEDDING, FEED_FORWARD)
        weights(f"{block}.ffn_down.weight", FEED_FORWARD, EMBEDDING)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def vocabulary() -> list[str]:
    """As many pieces as models of this size have: any text can be written with them."""
    letters = [chr(ord("a") + number) for number in range(26)]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *letters]
    pieces += [f"▁{letter}" for letter in letters]
    for length in (2, 3, 4):
        for number in range(26**length):
            if len(pieces) == VOCABULARY:
                return pieces
            word = "".join([letters[number // int(26**place) % 26] for place in reversed(range(length))])
            pieces.append(f"▁{word}")
    return pieces


if __name__ == "__main__":
    write_model(Path(sys.argv[1]))
