"""What is kept of llama.cpp's log, from lines as it writes them."""

from __future__ import annotations

import pytest

pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, which is not installed")
from enclave_llama_cpp.log import LoadLog

INFO, ERROR = 2, 4


def heard(*lines: tuple[int, str]) -> LoadLog:
    log = LoadLog()
    for level, line in lines:
        log.add(level, line)
    return log


def test_the_reason_is_the_first_error_without_its_origin() -> None:
    log = heard(
        (INFO, "llama_model_loader: loaded meta data"),
        (ERROR, "llama_model_load: error loading model: error loading model architecture: unknown model: 'x'"),
        (ERROR, "llama_model_load_from_file_impl: failed to load model"),
    )
    assert log.reason == "unknown model: 'x'"
    assert not log.out_of_memory


def test_without_errors_the_reason_says_so() -> None:
    assert "no reason" in heard().reason


@pytest.mark.parametrize(
    "line",
    [
        "ggml_aligned_malloc: insufficient memory (attempted to allocate 99.00 MB)",
        "llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache",
        "llama_model_load: error loading model: unable to allocate CPU buffer",
    ],
)
def test_a_lack_of_memory_is_told_from_a_bad_file(line: str) -> None:
    assert heard((ERROR, line)).out_of_memory


def test_buffers_are_summed_from_their_lines() -> None:
    log = heard(
        (INFO, "load_tensors:   CPU_REPACK model buffer size =   177.19 MiB"),
        (INFO, "llama_kv_cache:        CPU KV buffer size =   448.00 MiB"),
        (INFO, "llama_context:        CPU  output buffer size =     0.12 MiB"),
        (INFO, "llama_context: n_ctx = 8192"),
    )
    assert list(log.buffers) == [
        ("CPU_REPACK model", int(177.19 * 2**20)),
        ("CPU KV", 448 * 2**20),
        ("CPU  output", int(0.12 * 2**20)),
    ]


def test_endless_errors_do_not_pile_up() -> None:
    log = heard(*((ERROR, f"error {number}") for number in range(1000)))
    assert len(log.errors) < 100
    assert log.reason == "error 0"
