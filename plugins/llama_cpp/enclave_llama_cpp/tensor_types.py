"""The tensor types that a GGUF file may hold: name, block and bytes of each, and what llama.cpp can do with it.

The header reader, the memory estimate and the refusals look things up here; nothing in here reads a file. Numbers and
block sizes are ggml's (`enum ggml_type` and the block structs of `ggml-common.h`).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorType:
    """One type: `block_bytes` hold `block_elements` elements of a row."""

    name: str
    block_elements: int
    block_bytes: int


TENSOR_TYPES: dict[int, TensorType] = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    6: TensorType("Q5_0", 32, 22),
    7: TensorType("Q5_1", 32, 24),
    8: TensorType("Q8_0", 32, 34),
    9: TensorType("Q8_1", 32, 36),
    10: TensorType("Q2_K", 256, 84),
    11: TensorType("Q3_K", 256, 110),
    12: TensorType("Q4_K", 256, 144),
    13: TensorType("Q5_K", 256, 176),
    14: TensorType("Q6_K", 256, 210),
    15: TensorType("Q8_K", 256, 292),
    16: TensorType("IQ2_XXS", 256, 66),
    17: TensorType("IQ2_XS", 256, 74),
    18: TensorType("IQ3_XXS", 256, 98),
    19: TensorType("IQ1_S", 256, 50),
    20: TensorType("IQ4_NL", 32, 18),
    21: TensorType("IQ3_S", 256, 110),
    22: TensorType("IQ2_S", 256, 82),
    23: TensorType("IQ4_XS", 256, 136),
    24: TensorType("I8", 1, 1),
    25: TensorType("I16", 1, 2),
    26: TensorType("I32", 1, 4),
    27: TensorType("I64", 1, 8),
    28: TensorType("F64", 1, 8),
    29: TensorType("IQ1_M", 256, 56),
    30: TensorType("BF16", 1, 2),
    34: TensorType("TQ1_0", 256, 54),
    35: TensorType("TQ2_0", 256, 66),
    39: TensorType("MXFP4", 32, 17),
    40: TensorType("NVFP4", 64, 36),
    41: TensorType("Q1_0", 128, 18),
    42: TensorType("Q2_0", 64, 18),
}

REMOVED_TENSOR_TYPES = frozenset({4, 5, 31, 32, 33, 36, 37, 38})
"""Numbers that older files carry and that llama.cpp gave up."""

UNCOMPUTABLE_TENSOR_TYPES = frozenset({"Q8_1", "Q8_K", "I8", "I16", "I64", "F64"})
"""Types without a matrix product on the CPU: llama.cpp loads some of them and then dies at the first step (seen with
F64 in 0.3.36). Q8_1 and Q8_K exist for activations only. I32 is left in: a few architectures keep index tables."""

REPACKED_ON_X86 = frozenset({"Q4_0", "Q4_K", "Q2_K", "IQ4_NL", "MXFP4"})
REPACKED_ON_ARM = frozenset({"Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "Q1_0", "IQ4_NL", "MXFP4"})
"""Types that llama.cpp's CPU backend turns into an interleaved layout of the same size while loading (`repack.cpp`);
a processor with fewer instructions repacks fewer of them."""


def repacked_types(machine: str) -> frozenset[str]:
    """The types repacked on a CPU, named as by `platform.machine()`."""
    if machine.lower() in {"x86_64", "amd64"}:
        return REPACKED_ON_X86
    if machine.lower() in {"arm64", "aarch64"}:
        return REPACKED_ON_ARM
    return frozenset()
