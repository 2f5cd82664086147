"""Writes a GGUF file of version 3 with F32 tensors: no more of the format than the built-in model needs.

The format is specified in ggml's `docs/gguf.md`. All numbers are little-endian.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

ALIGNMENT_BYTES = 32
"""Tensors begin at multiples of this, the default that readers assume."""

_VERSION = 3
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_TENSOR_F32 = 0

Value: TypeAlias = str | int | float | bool | Sequence[str] | Sequence[int] | Sequence[float]


@dataclass(frozen=True)
class Tensor:
    """Values in the order of the file: `shape[0]` is the length of a row, the number that varies fastest."""

    shape: tuple[int, ...]
    values: array[float]


def gguf_bytes(metadata: Mapping[str, Value], tensors: Mapping[str, Tensor]) -> bytes:
    """The whole file. Whole numbers are written as uint32, in arrays as int32, all others as float32."""
    head = bytearray(struct.pack("<4sIQQ", b"GGUF", _VERSION, len(tensors), len(metadata)))
    for key, value in metadata.items():
        head += _string(key) + _typed(value)
    offset = 0
    for name, tensor in tensors.items():
        head += _string(name) + struct.pack("<I", len(tensor.shape))
        head += struct.pack(f"<{len(tensor.shape)}QIQ", *tensor.shape, _TENSOR_F32, offset)
        offset += _aligned(4 * len(tensor.values))
    data = bytearray(_aligned(len(head)) - len(head))
    for tensor in tensors.values():
        values = tensor.values
        if sys.byteorder == "big":
            values = values[:]
            values.byteswap()
        data += values.tobytes()
        data += bytes(_aligned(len(values) * 4) - len(values) * 4)
    return bytes(head + data)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _typed(value: Value) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    if isinstance(value[0], str):
        return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(_string(str(item)) for item in value)
    kind, code = (_INT32, "i") if isinstance(value[0], int) else (_FLOAT32, "f")
    return struct.pack(f"<IIQ{len(value)}{code}", _ARRAY, kind, len(value), *value)
