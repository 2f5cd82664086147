"""The light half: what it takes for its own, what it refuses, and that the daemon pays nothing for it."""

from __future__ import annotations

import dataclasses
import io
import subprocess
import sys
from typing import Any

import pytest

from enclave_llama_cpp.gguf import read_header
from enclave_llama_cpp.plugin import ENCLAVE_API_VERSION, LlamaCppBackend, enclave_backends
from enclaved.plugin.hookspecs import API_VERSION
from enclaved.plugin.model import ModelHeader
from plugins.llama_cpp.tests.tiny_gguf import Gguf, Tensor, tiny_llama

BACKEND = LlamaCppBackend()


def header_of(model: Gguf) -> ModelHeader:
    content = model.encode()
    return read_header(io.BytesIO(content), len(content))


def test_the_plugin_is_written_for_this_api() -> None:
    assert ENCLAVE_API_VERSION == API_VERSION
    assert [backend.name for backend in enclave_backends()] == ["llama_cpp"]


def test_importing_the_light_half_imports_nothing_heavy() -> None:
    code = (
        "import sys, enclave_llama_cpp.plugin\n"
        "print(sorted({'numpy', 'llama_cpp', 'ctypes', 'enclave_llama_cpp.gguf'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.gguf", True),
        ("Model-Q4_K_M.GGUF", True),
        ("model.onnx", False),
        ("model.gguf.part", False),
        ("mmproj-model-f16.gguf", False),
        ("model.mmproj-Q8_0.gguf", False),
        ("model.imatrix.gguf", False),
    ],
)
def test_files_are_recognised_by_name(name: str, expected: bool) -> None:
    assert BACKEND.recognises(name) is expected


def test_a_sound_model_is_not_refused() -> None:
    assert BACKEND.refuse(header_of(tiny_llama())) is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"format": "onnx"}, "onnx"),
        ({"block_count": 513}, "513 layers"),
        ({"block_count": 2**32 - 1}, "4,294,967,295 layers"),
        ({"block_count": 0}, "0 layers"),
        ({"embedding_length": 0}, "embeddings"),
        ({"head_count": 2**20}, "1,048,576 attention heads"),
        ({"head_count_kv": (2, 3)}, "3 key/value heads"),
        ({"head_count_kv": (8, 8)}, "8 key/value heads"),
        ({"weights_bytes": 0}, "vocabulary only"),
        ({"weights_bytes": 0, "vocabulary_size": 0}, "no tensors"),
        ({"vocabulary_size": 0}, "no vocabulary"),
        ({"tokenizer": "no_vocab"}, "no vocabulary"),
        ({"capabilities": ("diffuse",)}, "diffuse"),
    ],
)
def test_what_cannot_be_run_is_refused_with_the_reason(changes: dict[str, Any], told: str) -> None:
    reason = BACKEND.refuse(dataclasses.replace(header_of(tiny_llama()), **changes))
    assert reason is not None
    assert told in reason


def test_tensors_that_nothing_can_multiply_are_refused() -> None:
    model = tiny_llama()
    model.tensors.append(Tensor("blk.0.extra.weight", (4,), bytes(32), type_id=28))
    reason = BACKEND.refuse(header_of(model))
    assert reason is not None
    assert "F64" in reason


def test_a_layer_without_attention_is_no_reason_to_refuse() -> None:
    assert BACKEND.refuse(dataclasses.replace(header_of(tiny_llama()), head_count_kv=(2, 0))) is None
