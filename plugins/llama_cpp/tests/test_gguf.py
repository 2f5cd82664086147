"""The header reader: what it tells of good files, and that nothing in a bad one can hurt it."""

from __future__ import annotations

import io
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_llama_cpp import cursor
from enclave_llama_cpp.gguf import read_header
from enclaved.plugin.model import HeaderError, ModelHeader
from plugins.llama_cpp.tests.tiny_gguf import ARRAY, F32, STRING, U32, U64, Gguf, Tensor, encoded_string, tiny_llama


def read(content: bytes) -> ModelHeader:
    return read_header(io.BytesIO(content), len(content))


def reason(content: bytes) -> str:
    with pytest.raises(HeaderError) as caught:
        read(content)
    return str(caught.value)


def header_or_reason(content: bytes) -> ModelHeader | str:
    try:
        return read(content)
    except HeaderError as error:
        return str(error)


def test_a_tiny_llama_is_described_completely() -> None:
    model = tiny_llama()
    header = read(model.encode())
    elements = sum(len(tensor.data) // 4 for tensor in model.tensors)
    assert header == ModelHeader(
        format="gguf",
        architecture="llama",
        name="tiny",
        parameters=elements,
        quantisation="F32",
        context_length=128,
        block_count=2,
        embedding_length=32,
        head_count=4,
        head_count_kv=(2, 2),
        key_length=8,
        value_length=8,
        vocabulary_size=287,
        weights_bytes=4 * elements,
        tensor_types={"F32": 4 * elements},
        tokenizer="llama",
        capabilities=("generate",),
    )


def test_version_2_is_read_like_3() -> None:
    model = tiny_llama()
    model.version = 2
    assert read(model.encode()).architecture == "llama"


def test_key_value_heads_may_differ_by_layer() -> None:
    header = read(tiny_llama(changes={"llama.attention.head_count_kv": (U32, [4, 1])}).encode())
    assert header.head_count_kv == (4, 1)


def test_without_key_value_heads_each_head_has_its_own() -> None:
    model = tiny_llama()
    del model.pairs["llama.attention.head_count_kv"]
    assert read(model.encode()).head_count_kv == (4, 4)


def test_given_head_lengths_go_before_the_computed_ones() -> None:
    changes: dict[str, Any] = {"llama.attention.key_length": (U32, 64), "llama.attention.value_length": (U32, 16)}
    header = read(tiny_llama(changes=changes).encode())
    assert (header.key_length, header.value_length) == (64, 16)


def test_quantisation_is_the_type_of_most_bytes() -> None:
    model = tiny_llama()
    model.tensors.append(Tensor("big", (32, 32_000), bytes(34 * 32_000), type_id=8))
    header = read(model.encode())
    assert header.quantisation == "Q8_0"
    assert header.tensor_types["Q8_0"] == 34 * 32_000


def test_a_template_makes_a_model_chat() -> None:
    header = read(tiny_llama(changes={"tokenizer.chat_template": (STRING, "{{ messages }}")}).encode())
    assert header.capabilities == ("generate", "chat")
    assert (header.template, header.template_bytes) == ("{{ messages }}", 14)


def test_a_long_template_is_left_out_but_measured() -> None:
    header = read(tiny_llama(changes={"tokenizer.chat_template": (STRING, "x" * 40_000)}).encode())
    assert (header.template, header.template_bytes) == (None, 40_000)
    assert "chat" in header.capabilities


def test_infill_is_found_by_token_ids() -> None:
    ids: dict[str, Any] = {f"tokenizer.ggml.fim_{part}_token_id": (U32, 5) for part in ("pre", "suf", "mid")}
    assert "infill" in read(tiny_llama(changes=ids).encode()).capabilities


def test_infill_is_found_by_the_texts_of_the_tokens() -> None:
    markers = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]
    vocabulary = (STRING, ["a", *markers[:2], "b"])
    assert "infill" not in read(tiny_llama(changes={"tokenizer.ggml.tokens": vocabulary}).encode()).capabilities
    vocabulary = (STRING, ["a", *markers, "b"])
    assert "infill" in read(tiny_llama(changes={"tokenizer.ggml.tokens": vocabulary}).encode()).capabilities


def test_infill_markers_are_found_across_the_borders_of_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    markers = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]
    content = tiny_llama(changes={"tokenizer.ggml.tokens": (STRING, ["abcdefg", *markers] * 3)}).encode()
    for chunk_bytes in range(16, 80):
        monkeypatch.setattr(cursor, "CHUNK_BYTES", chunk_bytes)
        header = read(content)
        assert "infill" in header.capabilities
        assert header.vocabulary_size == 12


@pytest.mark.parametrize(("pooling", "capabilities"), [(1, ("embed",)), (3, ("embed",)), (4, ("rerank",))])
def test_pooling_tells_embedding_from_ranking(pooling: int, capabilities: tuple[str, ...]) -> None:
    assert read(tiny_llama(changes={"llama.pooling_type": (U32, pooling)}).encode()).capabilities == capabilities


def test_names_cannot_move_a_terminals_cursor() -> None:
    header = read(tiny_llama(changes={"general.name": (STRING, "good\x1b[2J\nname" + "x" * 500)}).encode())
    assert header.name is not None
    assert header.name.isprintable()
    assert len(header.name) <= 200


def test_a_text_file_is_named_as_what_it_starts_with() -> None:
    assert reason(b"Once upon a time") == 'is not a GGUF file (it starts with "Once")'
    assert "empty" in reason(b"")
    assert reason(b"GG") == 'is not a GGUF file (it starts with "GG")'


def test_a_big_endian_file_is_told_apart_from_a_new_version() -> None:
    content = tiny_llama().encode()
    assert "big-endian" in reason(content[:4] + struct.pack(">I", 3) + content[8:])
    assert "version 4" in reason(content[:4] + struct.pack("<I", 4) + content[8:])
    assert "version 1" in reason(content[:4] + struct.pack("<I", 1) + content[8:])


def test_a_file_cut_within_its_tensors_says_how_much_is_missing() -> None:
    content = tiny_llama().encode()
    told = reason(content[:-1])
    assert told.startswith("is cut off: ")
    assert f"{len(content):,}" in told
    assert f"{len(content) - 1:,}" in told


def test_a_file_cut_anywhere_is_refused() -> None:
    content = tiny_llama().encode()
    header_bytes = content.index(b"blk.1.ffn_down.weight") + 60
    for end in [*range(0, header_bytes, 7), *range(header_bytes, len(content), 4999)]:
        assert reason(content[:end])


def test_a_file_shorter_than_promised_by_its_caller_is_refused() -> None:
    content = tiny_llama().encode()
    with pytest.raises(HeaderError, match="cut off"):
        read_header(io.BytesIO(content[:500]), len(content))


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (struct.pack("<I", 99), "unknown type 99"),
        (struct.pack("<II", ARRAY, ARRAY) + struct.pack("<Q", 1), "array of arrays"),
        (struct.pack("<IIQ", ARRAY, 77, 1), "unknown type 77"),
        (struct.pack("<IIQ", ARRAY, U32, 2**60), "items"),
        (struct.pack("<IIQ", ARRAY, STRING, 2**60), "items"),
        (struct.pack("<IIQ", ARRAY, STRING, 3_999_999), "cut off"),
        (struct.pack("<IIQ", ARRAY, 0, 3_999_999), "cut off"),
        (struct.pack("<IQ", STRING, 2**63), "bytes"),
        (struct.pack("<IQ", STRING, 2**64 - 1), "bytes"),
    ],
)
def test_a_hostile_value_is_refused_at_once(raw: bytes, told: str) -> None:
    started = time.perf_counter()
    assert told in reason(Gguf(pair_count=1, raw_pairs=encoded_string("key") + raw).encode())
    assert time.perf_counter() - started < 1


def test_hostile_counts_are_refused() -> None:
    assert "tensors" in reason(Gguf(tensor_count=2**62).encode())
    assert "metadata entries" in reason(Gguf(pair_count=2**62).encode())


def test_a_key_may_be_there_once_only() -> None:
    pair = encoded_string("key") + struct.pack("<IQ", U64, 1)
    assert "twice" in reason(Gguf(pair_count=2, raw_pairs=pair + pair).encode())


def test_a_tensor_may_be_there_once_only() -> None:
    model = tiny_llama()
    model.tensors.append(model.tensors[0])
    assert "twice" in reason(model.encode())


@pytest.mark.parametrize(
    ("tensor", "told"),
    [
        (Tensor("t", (1, 1, 1, 1, 1), b"1234"), "dimensions"),
        (Tensor("t", (2**40, 2**40), b"1234"), "no memory"),
        (Tensor("t", (2**64 - 1,), b"1234"), "no memory"),
        (Tensor("t", (2**61,), b"1234"), "cut off"),
        (Tensor("t", (1,), b"1234", offset=2**40), "its place"),
        (Tensor("t", (1,), b"1234", type_id=4), "no longer reads"),
        (Tensor("t", (1,), b"1234", type_id=43), "unknown type 43"),
        (Tensor("t", (1,), b"1234", type_id=2), "multiple of Q4_0's 32"),
        (Tensor("t" * 64, (1,), b"1234"), "name of tensor"),
    ],
)
def test_an_impossible_tensor_is_refused(tensor: Tensor, told: str) -> None:
    model = tiny_llama()
    model.tensors.append(tensor)
    assert told in reason(model.encode())


@pytest.mark.parametrize("alignment", [0, 3, 48, 2**31])
def test_alignment_is_a_power_of_two(alignment: int) -> None:
    assert "alignment" in reason(tiny_llama(changes={"general.alignment": (U32, alignment)}).encode())


def test_another_alignment_is_respected() -> None:
    model = tiny_llama(changes={"general.alignment": (U32, 64)})
    model.alignment = 64
    assert read(model.encode()).architecture == "llama"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"general.type": (STRING, "adapter")}, "LoRA"),
        ({"general.architecture": (STRING, "clip")}, "projector"),
        ({"general.type": (STRING, "imatrix")}, "importance"),
        ({"split.count": (2, 3), "split.no": (2, 1)}, "part 2 of 3"),
        ({"llama.block_count": (STRING, "many")}, "whole number"),
        ({"llama.block_count": (5, -1)}, "whole number"),
        ({"llama.attention.head_count_kv": (U32, [2])}, "each of 2 layers"),
        ({"llama.attention.layer_norm_rms_epsilon": (F32, -1.0)}, "epsilon"),
        ({"llama.attention.layer_norm_rms_epsilon": (F32, float("nan"))}, "epsilon"),
    ],
)
def test_what_is_no_model_by_itself_is_named(changes: dict[str, Any], told: str) -> None:
    assert told in reason(tiny_llama(changes=changes).encode())


def test_metadata_without_an_architecture_is_no_model() -> None:
    assert "names no architecture" in reason(Gguf({"some.key": (U32, 1)}).encode())


def test_a_claim_of_many_layers_makes_no_list_of_that_length() -> None:
    header = read(tiny_llama(changes={"llama.block_count": (U32, 2**32 - 1)}).encode())
    assert header.block_count == 2**32 - 1
    assert header.head_count_kv == ()


def test_a_large_vocabulary_is_skipped_fast() -> None:
    tokens = b"".join(encoded_string(f"token{number}") for number in range(128_000))
    merges = b"".join(encoded_string(f"to ken{number}") for number in range(280_000))
    model = tiny_llama()
    del model.pairs["tokenizer.ggml.tokens"]
    model.pair_count = len(model.pairs) + 2
    model.raw_pairs = b"".join(
        encoded_string(f"tokenizer.ggml.{name}") + struct.pack("<IIQ", ARRAY, STRING, count) + items
        for name, count, items in (("tokens", 128_000, tokens), ("merges", 280_000, merges))
    )
    content = model.encode()
    started = time.thread_time()
    assert read(content).vocabulary_size == 128_000
    assert time.thread_time() - started < 1


@settings(max_examples=200)
@given(st.binary(max_size=300))
def test_garbage_after_the_magic_ends_in_a_header_or_a_reason(garbage: bytes) -> None:
    assert header_or_reason(b"GGUF\x03\x00\x00\x00" + garbage)


@pytest.mark.parametrize(
    ("path", "told"), [("odd/docker-dummy.gguf", "no architecture"), ("golden_llama2c.json", "not a GGUF file")]
)
def test_odd_files_are_refused(shared_models: Path, path: str, told: str) -> None:
    assert told in reason((shared_models / path).read_bytes())


def test_an_embedding_model_is_recognised(shared_models: Path) -> None:
    path = shared_models / "all-MiniLM-L6-v2" / "all-MiniLM-L6-v2-f16.gguf"
    with path.open("rb") as file:
        header = read_header(file, path.stat().st_size)
    assert header.capabilities == ("embed",)
    assert header.parameters == 22_565_376
    assert header.licence == "apache-2.0"
