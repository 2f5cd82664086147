"""Files that are no models, or bad ones: a short error that names file and reason, and nothing is left behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import enclave
from plugins.llama_cpp.tests.tiny_gguf import U32, Tensor, tiny_llama
from tests.running import RunningDaemon, run_enclave

F64_TENSOR = 28
"""GGML_TYPE_F64."""


@pytest.fixture
def asked(daemon: RunningDaemon) -> Asked:
    return Asked(daemon)


class Asked:
    """A daemon that was asked to run something bad."""

    def __init__(self, daemon: RunningDaemon) -> None:
        self.daemon = daemon

    def error(self, path: Path | str) -> enclave.EnclaveError:
        """The error of a request for `path`, which must name it; the daemon still serves, and no instance stays."""
        with self.daemon.client() as client:
            with pytest.raises(enclave.EnclaveError) as caught:
                client.generate(str(path), "x", max_tokens=2).result()
            assert str(path) in str(caught.value)
            assert client.instances() == []
            assert client.generate("fake:after", "x", max_tokens=1).result().text
            client.unload("fake:after")
        told = run_enclave("run", str(path), "x", home=self.daemon.home)
        assert told.returncode == 1
        assert told.stdout == ""
        assert str(path) in told.stderr
        assert "Traceback" not in told.stderr
        assert len(told.stderr.splitlines()) <= 8
        return caught.value


def test_a_missing_file(asked: Asked, tmp_path: Path) -> None:
    assert asked.error(tmp_path / "missing.gguf").code == "model_unreadable"


def test_a_folder(asked: Asked, tmp_path: Path) -> None:
    folder = tmp_path / "folder.gguf"
    folder.mkdir()
    assert asked.error(folder).code == "model_unreadable"


def test_a_named_pipe(asked: Asked, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    assert asked.error(tmp_path / "pipe.gguf").code == "model_unreadable"


@pytest.mark.usefixtures("llama_cpp")
@pytest.mark.parametrize("content", [b"", b"These are words.\n", b"GGUF", b"GGUF" + b"\xff" * 64], ids=repr)
def test_a_file_that_is_no_gguf(asked: Asked, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    assert asked.error(path).code == "bad_model_file"


@pytest.mark.usefixtures("llama_cpp")
@pytest.mark.parametrize("part", [0.1, 0.5, 0.999])
def test_a_model_that_is_cut_off(asked: Asked, tmp_path: Path, part: float) -> None:
    with asked.daemon.client() as client:
        tiny = next(model.path for model in client.models() if model.name == "tiny")
    assert tiny is not None
    whole = Path(tiny).read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[: int(len(whole) * part)])
    assert asked.error(path).code == "bad_model_file"


@pytest.mark.usefixtures("llama_cpp")
@pytest.mark.parametrize("name", ["superpoint", "docker-dummy"])
def test_a_real_file_that_no_language_model_is_in(asked: Asked, shared_models: Path, name: str) -> None:
    assert asked.error(shared_models / "odd" / f"{name}.gguf").code in ("unsupported_model", "bad_model_file")


@pytest.mark.usefixtures("llama_cpp")
@pytest.mark.parametrize("damage", ["too many layers", "numbers of 64 bits", "no vocabulary"])
def test_a_file_that_would_end_the_process_is_refused_before(asked: Asked, tmp_path: Path, damage: str) -> None:
    model = tiny_llama()
    if damage == "too many layers":
        model.pairs["llama.block_count"] = (U32, 100_000)
    elif damage == "no vocabulary":
        for key in [key for key in model.pairs if key.startswith("tokenizer.")]:
            del model.pairs[key]
    else:
        first = model.tensors[0]
        model.tensors[0] = Tensor(first.name, first.dimensions, first.data * 2, type_id=F64_TENSOR)
    path = tmp_path / "hostile.gguf"
    path.write_bytes(model.encode())
    assert asked.error(path).code == "unsupported_model"


def test_a_load_that_fails_says_why(asked: Asked) -> None:
    error = asked.error("fake:bad?load_fails=the%20moon%20is%20wrong")
    assert error.code == "load_failed"
    assert "the moon is wrong" in (error.detail or "")


def test_a_load_that_runs_out_of_memory_says_so(asked: Asked) -> None:
    assert asked.error("fake:bad?out_of_memory_loads=9").code == "out_of_memory"


def test_an_unreadable_file(asked: Asked, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads every file")
    path = tmp_path / "secret.gguf"
    path.write_bytes(b"GGUF")
    path.chmod(0)
    assert asked.error(path).code == "model_unreadable"
