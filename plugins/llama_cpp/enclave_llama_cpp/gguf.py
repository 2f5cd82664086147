"""Reads the header of a GGUF file, of which nothing is trusted, into a `ModelHeader`.

The inspector and the fetcher call `read_header`; it never touches tensor data and needs nothing but the standard
library. Whatever the input, memory and time are bounded: each count and length is checked before it is used, big
arrays are skipped without becoming Python objects. What llama.cpp's own reader would reject (`ggml/src/gguf.cpp`) is
rejected here too, with a reason for a person. Format: docs/gguf.md in ggml's repository.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import BinaryIO

from enclave_llama_cpp.cursor import SCALARS, STRING_BYTES_MAX, Cursor
from enclave_llama_cpp.tensor_types import REMOVED_TENSOR_TYPES, TENSOR_TYPES
from enclaved.plugin.model import CutOffError, HeaderError, ModelHeader

MAGIC = b"GGUF"
VERSIONS = (2, 3)
PAIRS_MAX = 10_000
TENSORS_MAX = 100_000
KEY_BYTES_MAX = 64 * 1024
ARRAY_ITEMS_MAX = 4_000_000
KEPT_ITEMS_MAX = 1024
"""Longer arrays are skipped: those wanted have an item a layer, and llama.cpp takes 512 layers."""
TENSOR_NAME_BYTES_MAX = 63
DIMENSIONS_MAX = 4
DEFAULT_ALIGNMENT = 32
INT64_MAX = 2**63 - 1
TEMPLATE_BYTES_MAX = 32 * 1024
TEXT_CHARACTERS_MAX = 200

_STRING, _ARRAY = 8, 9

_FIM_MARKERS: tuple[tuple[bytes, ...], ...] = tuple(
    tuple(struct.pack("<Q", len(marker.encode())) + marker.encode() for marker in family)
    for family in (
        ("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>", "<|code_prefix|>"),
        ("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>", "<|code_suffix|>"),
        ("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>", "<|code_middle|>"),
    )
)
"""Tokens that llama.cpp takes for fill-in-the-middle by their text, as they lie in the file: length, then bytes."""

Value = int | float | bool | str | list[int]


@dataclass
class _Metadata:
    """What was kept of the key/value pairs."""

    values: dict[str, Value] = field(default_factory=dict[str, Value])
    token_count: int = 0
    fim_families: set[int] = field(default_factory=set[int])
    template_bytes: int = 0
    has_named_template: bool = False


def read_header(file: BinaryIO, size_bytes: int) -> ModelHeader:
    """The header of the GGUF file `file` of `size_bytes` bytes.

    Raises HeaderError for whatever is no GGUF model: the reason is written to stand after the file's name.
    """
    cursor = Cursor(file, size_bytes)
    tensor_count, pair_count = _read_preamble(cursor, size_bytes)
    metadata = _read_metadata(cursor, pair_count)
    alignment = metadata.values.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1) or alignment > 2**20:
        raise HeaderError(f"is damaged: its alignment is {alignment!r}, not a power of two")
    elements, tensor_types = _read_tensors(cursor, tensor_count, alignment, size_bytes)
    return _header(metadata, elements, tensor_types)


def _read_preamble(cursor: Cursor, size_bytes: int) -> tuple[int, int]:
    """Magic, version and counts: (tensors, key/value pairs)."""
    if size_bytes == 0:
        raise CutOffError("is empty")
    magic = cursor.take(min(4, size_bytes), "the magic")
    if magic != MAGIC:
        raise HeaderError(f"is not a GGUF file (it starts with {_readable(magic)})")
    version = cursor.u32("the version")
    if version & 0xFFFF == 0 and version:
        raise HeaderError("is a big-endian GGUF file, made for another kind of machine")
    if version not in VERSIONS:
        wanted = " and ".join(str(known) for known in VERSIONS)
        raise HeaderError(f"is a GGUF file of version {version}; only {wanted} can be read")
    tensor_count = cursor.u64("the tensor count")
    pair_count = cursor.u64("the metadata count")
    if tensor_count > TENSORS_MAX:
        raise HeaderError(f"is damaged: it claims {tensor_count:,} tensors, {TENSORS_MAX:,} are the most")
    if pair_count > PAIRS_MAX:
        raise HeaderError(f"is damaged: it claims {pair_count:,} metadata entries, {PAIRS_MAX:,} are the most")
    return tensor_count, pair_count


def _read_metadata(cursor: Cursor, pair_count: int) -> _Metadata:
    metadata = _Metadata()
    seen: set[bytes] = set()
    for number in range(pair_count):
        raw_key = cursor.string(KEY_BYTES_MAX, f"the key of metadata entry {number}")
        if not raw_key:
            raise HeaderError(f"is damaged: metadata entry {number} has no key")
        if raw_key in seen:
            raise HeaderError(f"is damaged: the metadata key {_shown(raw_key)} is there twice")
        seen.add(raw_key)
        _read_value(cursor, raw_key.decode("utf-8", "replace"), metadata)
    return metadata


def _read_value(cursor: Cursor, key: str, metadata: _Metadata) -> None:
    what = f"the value of {_shown(key.encode())}"
    kind = cursor.u32(what)
    if kind == _ARRAY:
        _read_array(cursor, key, what, metadata)
    elif kind == _STRING:
        text = cursor.string(STRING_BYTES_MAX, what)
        if key == "tokenizer.chat_template":
            metadata.template_bytes = len(text)
            if len(text) > TEMPLATE_BYTES_MAX:
                return
        elif key.startswith("tokenizer.chat_template."):
            metadata.has_named_template = True
        if len(text) <= TEMPLATE_BYTES_MAX:
            metadata.values[key] = text.decode("utf-8", "replace")
    elif kind in SCALARS:
        metadata.values[key] = cursor.unpack(SCALARS[kind], what)
    else:
        raise HeaderError(f"is damaged: {what} has the unknown type {kind}")


def _read_array(cursor: Cursor, key: str, what: str, metadata: _Metadata) -> None:
    kind = cursor.u32(what)
    count = cursor.u64(what)
    if kind == _ARRAY:
        raise HeaderError(f"is damaged: {what} is an array of arrays")
    if count > ARRAY_ITEMS_MAX:
        raise HeaderError(f"is damaged: {what} claims {count:,} items, {ARRAY_ITEMS_MAX:,} are the most")
    if kind == _STRING:
        is_vocabulary = key == "tokenizer.ggml.tokens"
        found = cursor.skip_strings(count, what, _FIM_MARKERS if is_vocabulary else ())
        if is_vocabulary:
            metadata.token_count = count
            metadata.fim_families |= found
    elif kind in SCALARS:
        shape = SCALARS[kind]
        if count <= KEPT_ITEMS_MAX and shape.format[-1:] in "bBhHiIqQ":
            raw = cursor.take(count * shape.size, what)
            metadata.values[key] = [item for (item,) in shape.iter_unpack(raw)]
        else:
            cursor.skip(count * shape.size, what)
    else:
        raise HeaderError(f"is damaged: {what} has items of the unknown type {kind}")


def _read_tensors(cursor: Cursor, count: int, alignment: int, size_bytes: int) -> tuple[int, dict[str, int]]:
    """The tensor list: (elements in all, bytes by type). Checks that the data they name is all in the file."""
    names: set[bytes] = set()
    bytes_by_type: dict[str, int] = {}
    elements_all = 0
    offset_expected = 0
    data_end = 0
    for number in range(count):
        name = cursor.string(TENSOR_NAME_BYTES_MAX, f"the name of tensor {number}")
        if name in names:
            raise HeaderError(f"is damaged: the tensor {_shown(name)} is there twice")
        names.add(name)
        elements, kind, nbytes, offset = _read_tensor(cursor, f"tensor {_shown(name)}")
        if offset != offset_expected:
            raise HeaderError(
                f"is damaged: tensor {_shown(name)} lies at {offset:,}, {offset_expected:,} would be its place"
            )
        data_end = offset + nbytes
        offset_expected = -(-data_end // alignment) * alignment
        elements_all += elements
        bytes_by_type[kind] = bytes_by_type.get(kind, 0) + nbytes
    if count:
        data_start = -(-cursor.offset // alignment) * alignment
        if data_start + data_end > size_bytes:
            raise CutOffError(
                f"is cut off: the header says {data_start + data_end:,} bytes with all tensors, "
                f"the file has {size_bytes:,}"
            )
    return elements_all, bytes_by_type


def _read_tensor(cursor: Cursor, what: str) -> tuple[int, str, int, int]:
    """One tensor: (elements, type name, bytes, offset of its data)."""
    dimension_count = cursor.u32(what)
    if dimension_count > DIMENSIONS_MAX:
        raise HeaderError(f"is damaged: {what} has {dimension_count:,} dimensions, {DIMENSIONS_MAX} are the most")
    dimensions = [cursor.u64(what) for _ in range(dimension_count)]
    kind = cursor.u32(what)
    offset = cursor.u64(what)
    elements = 1
    for dimension in dimensions:
        elements *= dimension
    # The wrapped-around product of hostile sizes is what a C reader would see, so each stays below 2^63.
    if max(dimensions, default=1) > INT64_MAX or elements > INT64_MAX or offset > INT64_MAX:
        raise HeaderError(f"is damaged: {what} claims sizes {dimensions} that no memory can hold")
    if kind in REMOVED_TENSOR_TYPES:
        raise HeaderError(f"is too old: {what} has the type {kind}, which llama.cpp no longer reads")
    if kind not in TENSOR_TYPES:
        raise HeaderError(f"is damaged or too new: {what} has the unknown type {kind}")
    known = TENSOR_TYPES[kind]
    row = dimensions[0] if dimensions else 1
    if row % known.block_elements:
        raise HeaderError(
            f"is damaged: {what} has rows of {row:,} elements, not a multiple of {known.name}'s {known.block_elements}"
        )
    nbytes = elements // known.block_elements * known.block_bytes
    return elements, known.name, nbytes, offset


_NO_MODELS = {
    "adapter": "is a LoRA adapter, which changes a model but is none itself",
    "mmproj": "is a projector (mmproj), which belongs to a model but is none itself",
    "imatrix": "is an importance matrix for quantising, no model",
    "clip": "is a projector (mmproj), which belongs to a model but is none itself",
    "controlvector": "is a control vector, which changes a model but is none itself",
}


def _header(metadata: _Metadata, elements: int, tensor_types: dict[str, int]) -> ModelHeader:
    values = metadata.values
    architecture = values.get("general.architecture")
    kind = values.get("general.type")
    for marker in (kind, architecture):
        if isinstance(marker, str) and marker in _NO_MODELS:
            raise HeaderError(_NO_MODELS[marker])
    if not isinstance(architecture, str) or not architecture:
        raise HeaderError("is a GGUF file, but no model: it names no architecture")
    if len(architecture) > 64 or not architecture.isprintable():
        raise HeaderError(f"is damaged: it names the architecture {_shown(architecture.encode())}")
    shards = _whole(values, "split.count")
    if shards > 1:
        part = _whole(values, "split.no") + 1
        raise HeaderError(f"is part {part} of {shards} of a split model; join the parts into one file first")

    for name in ("layer_norm_rms_epsilon", "layer_norm_epsilon"):
        epsilon = values.get(f"{architecture}.attention.{name}", 0.0)
        # llama.cpp ends the process at the first step over a negative one, or over NaN.
        if isinstance(epsilon, float) and not epsilon >= 0:
            raise HeaderError(f"is damaged: its {name} is {epsilon}")

    def of(name: str) -> int:
        return _whole(values, f"{architecture}.{name}")

    block_count = of("block_count")
    embedding_length = of("embedding_length")
    head_counts = _by_layer(values, f"{architecture}.attention.head_count", block_count)
    head_count = max(head_counts, default=0)
    key_kv = f"{architecture}.attention.head_count_kv"
    head_counts_kv = _by_layer(values, key_kv, block_count) if key_kv in values else head_counts
    key_length_default = embedding_length // head_count if head_count else 0
    template = values.get("tokenizer.chat_template")
    return ModelHeader(
        format="gguf",
        architecture=architecture,
        name=_text(values, "general.name"),
        parameters=elements or None,
        quantisation=max(tensor_types, key=lambda name: tensor_types[name]) if tensor_types else None,
        context_length=of("context_length") or None,
        block_count=block_count,
        embedding_length=embedding_length,
        head_count=head_count,
        head_count_kv=head_counts_kv,
        key_length=of("attention.key_length") or key_length_default,
        value_length=of("attention.value_length") or key_length_default,
        vocabulary_size=metadata.token_count,
        weights_bytes=sum(tensor_types.values()),
        tensor_types=tensor_types,
        sliding_window=of("attention.sliding_window") or None,
        tokenizer=_text(values, "tokenizer.ggml.model"),
        template=template if isinstance(template, str) else None,
        template_bytes=metadata.template_bytes,
        licence=_text(values, "general.license"),
        capabilities=_capabilities(metadata, architecture),
    )


def _capabilities(metadata: _Metadata, architecture: str) -> tuple[str, ...]:
    """What the metadata says a model is for. Pooling types: `enum llama_pooling_type`, 4 is ranking."""
    values = metadata.values
    pooling = values.get(f"{architecture}.pooling_type", 0)
    if pooling == 4:
        return ("rerank",)
    is_encoder = values.get(f"{architecture}.attention.causal") is False or values.get("tokenizer.ggml.model") == "bert"
    if is_encoder or pooling in (1, 2, 3):
        return ("embed",)
    if not metadata.token_count:
        return ()
    capabilities = ["generate"]
    if metadata.template_bytes or metadata.has_named_template:
        capabilities.append("chat")
    by_id = [
        any(f"tokenizer.ggml.{name}_token_id" in values for name in names)
        for names in (("fim_pre", "prefix"), ("fim_suf", "suffix"), ("fim_mid", "middle"))
    ]
    if all(given or number in metadata.fim_families for number, given in enumerate(by_id)):
        capabilities.append("infill")
    return tuple(capabilities)


def _whole(values: dict[str, Value], key: str) -> int:
    """A number ≥ 0, 0 when absent. Of a number for each layer: the largest."""
    value = values.get(key, 0)
    if isinstance(value, list):
        value = max(value, default=0)
    if type(value) is not int or not 0 <= value <= INT64_MAX:
        raise HeaderError(f"is damaged: {_shown(key.encode())} should be a whole number, it is {str(value)[:40]!r}")
    return value


def _by_layer(values: dict[str, Value], key: str, block_count: int) -> tuple[int, ...]:
    """A number for each layer, from one for all or a list. Empty beyond any layer count that a backend could run."""
    if block_count > KEPT_ITEMS_MAX:
        return ()
    value = values.get(key)
    if not isinstance(value, list):
        return (_whole(values, key),) * block_count
    if len(value) < block_count or min(value, default=0) < 0:
        raise HeaderError(f"is damaged: {_shown(key.encode())} has no number ≥ 0 for each of {block_count} layers")
    return tuple(value[:block_count])


def _text(values: dict[str, Value], key: str) -> str | None:
    """A short text fit for a terminal."""
    value = values.get(key)
    if not isinstance(value, str):
        return None
    return "".join(character for character in value[:TEXT_CHARACTERS_MAX] if character.isprintable()) or None


def _shown(raw: bytes) -> str:
    text = raw[:80].decode("utf-8", "replace")
    return "".join(character if character.isprintable() else "?" for character in text)


def _readable(data: bytes) -> str:
    """The bytes as text where they are, else as numbers."""
    text = data.decode("ascii", "replace")
    return f'"{text}"' if text.isprintable() and "\ufffd" not in text else f"the bytes {data.hex(' ')}"
