"""The memory estimate: its parts by arithmetic, and against what llama.cpp says it allocated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_llama_cpp.gguf import read_header
from enclave_llama_cpp.memory import estimate, kv_type, maps_weights
from enclaved.plugin.engine import Placement
from enclaved.plugin.model import ModelHeader
from plugins.llama_cpp.tests.conftest import LoadEngine
from plugins.llama_cpp.tests.tiny_gguf import tiny_llama

MEBIBYTE = 2**20


def placement(**fields: Any) -> Placement:
    known: dict[str, Any] = {"device": "cpu", "context": 8192, "sequences": 1, "threads": 1}
    return Placement(**(known | fields))


def header(**fields: Any) -> ModelHeader:
    """The shape of a 0.4 B Llama: 56 KiB of float16 keys and values a token."""
    known: dict[str, Any] = {
        "format": "gguf",
        "architecture": "llama",
        "block_count": 28,
        "embedding_length": 1024,
        "head_count": 16,
        "head_count_kv": (8,) * 28,
        "key_length": 64,
        "value_length": 64,
        "vocabulary_size": 32_000,
        "weights_bytes": 228 * MEBIBYTE,
        "tensor_types": {"Q4_0": 227 * MEBIBYTE, "F32": MEBIBYTE},
    }
    return ModelHeader(**(known | fields))


@pytest.mark.parametrize(("context", "mebibytes"), [(2048, 112), (8192, 448), (32768, 1792)])
def test_float16_keys_and_values_are_as_measured(context: int, mebibytes: int) -> None:
    assert estimate(header(), placement(context=context), "x86_64").kv_bytes == mebibytes * MEBIBYTE


def test_q8_0_keys_and_values_are_as_measured() -> None:
    assert estimate(header(), placement(kv_type="q8_0"), "x86_64").kv_bytes == 238 * MEBIBYTE


def test_each_layer_counts_its_own_heads() -> None:
    narrow = estimate(header(head_count_kv=(8,) * 14 + (0,) * 14), placement(), "x86_64")
    assert narrow.kv_bytes == 224 * MEBIBYTE


def test_sequences_and_rounding_multiply_the_cells() -> None:
    assert estimate(header(), placement(context=257, sequences=3), "x86_64").kv_bytes == 3 * 28 * MEBIBYTE


def test_weights_that_get_repacked_are_read_and_counted_once() -> None:
    assert not maps_weights(header(), "x86_64")
    assert estimate(header(), placement(), "x86_64").other_bytes == 0


def test_weights_that_stay_as_they_are_get_mapped() -> None:
    assert maps_weights(header(tensor_types={"F16": 228 * MEBIBYTE}), "x86_64")
    assert maps_weights(header(tensor_types={"Q8_0": 228 * MEBIBYTE}), "x86_64")
    assert not maps_weights(header(tensor_types={"Q8_0": 228 * MEBIBYTE}), "arm64")


def test_a_small_repacked_part_of_mapped_weights_counts_as_a_second_copy() -> None:
    mixed = header(tensor_types={"F16": 218 * MEBIBYTE, "Q4_0": 10 * MEBIBYTE})
    assert estimate(mixed, placement(), "x86_64").repacked_bytes == 10 * MEBIBYTE


@pytest.mark.parametrize(
    ("fields", "wish", "expected"),
    [
        ({}, {"kv_type": "q8_0"}, "q8_0"),
        ({}, {"kv_type": "q8_0", "flash_attention": False}, "f16"),
        ({"key_length": 80}, {"kv_type": "q8_0"}, "f16"),
        ({}, {"kv_type": "f32"}, "f32"),
    ],
)
def test_quantised_keys_and_values_need_flash_attention_and_fitting_heads(
    fields: dict[str, Any], wish: dict[str, Any], expected: str
) -> None:
    assert kv_type(header(**fields), placement(**wish)) == expected


@given(st.integers(1, 100_000), st.integers(1, 64), st.sampled_from(["f32", "f16", "q8_0"]), st.none() | st.booleans())
def test_more_context_never_needs_less(context: int, sequences: int, kind: str, flash: bool | None) -> None:
    wish: dict[str, Any] = {"kv_type": kind, "flash_attention": flash}
    less = estimate(header(), placement(context=context, sequences=sequences, **wish), "x86_64")
    more = estimate(header(), placement(context=context + 1, sequences=sequences + 1, **wish), "x86_64")
    assert more.total_bytes >= less.total_bytes
    assert more.kv_bytes > less.kv_bytes


WISHES: list[dict[str, Any]] = [
    {"context": 256, "sequences": 4, "kv_type": "f32", "flash_attention": False},
    {"context": 2048, "sequences": 4, "kv_type": "f32", "flash_attention": True},
    {"context": 8192, "sequences": 1, "kv_type": "f16", "flash_attention": None},
    {"context": 512, "sequences": 16, "kv_type": "q8_0", "flash_attention": None},
]
LOG_ROUNDING_BYTES = 6 * MEBIBYTE // 100
"""llama.cpp tells each buffer to 0.01 MiB, half a dozen buffers at most."""


def check_estimate(path: Path, load_engine: LoadEngine, wish: dict[str, Any]) -> None:
    with path.open("rb") as file:
        known = read_header(file, path.stat().st_size)
    expected = estimate(known, placement(**wish), "x86_64")
    measured = load_engine(path, **wish).memory()
    assert measured.weights_bytes == pytest.approx(expected.weights_bytes, abs=LOG_ROUNDING_BYTES)
    assert measured.kv_bytes == pytest.approx(expected.kv_bytes, abs=LOG_ROUNDING_BYTES)
    # The band that docs may promise for the estimate of the compute buffer: never too little, 20 % too much at most.
    assert expected.compute_bytes >= measured.compute_bytes - LOG_ROUNDING_BYTES
    assert expected.compute_bytes <= 1.2 * measured.compute_bytes + LOG_ROUNDING_BYTES


@pytest.mark.parametrize("wish", WISHES, ids=str)
def test_the_estimate_of_a_tiny_model_holds(tmp_path: Path, load_engine: LoadEngine, wish: dict[str, Any]) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(tiny_llama().encode())
    check_estimate(path, load_engine, wish)


@pytest.mark.parametrize("wish", WISHES, ids=str)
@pytest.mark.parametrize(
    "name", ["stories260K/stories260K-f32.gguf", "stories260K/stories260K-q8_0.gguf", "odd/llama-2-tiny-random.gguf"]
)
def test_the_estimate_of_a_trained_model_holds(
    shared_models: Path, load_engine: LoadEngine, name: str, wish: dict[str, Any]
) -> None:
    check_estimate(shared_models / name, load_engine, wish)
