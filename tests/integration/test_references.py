"""What a reference may be: a path, a folder's model, an alias, nothing at all; and which backend runs it."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest

import enclave
from tests.conftest import StartDaemon
from tests.running import RunningDaemon


@pytest.fixture
def model_folder(home: Path, start_daemon: StartDaemon) -> Path:
    """A folder outside the home with a real model in it, as a user would have one."""
    daemon = start_daemon()
    with daemon.client() as client:
        (tiny,) = [model for model in client.models() if model.name == "tiny"]
    assert tiny.path is not None
    folder = home.parent / "my models"
    folder.mkdir()
    shutil.copy(tiny.path, folder / "Story.gguf")
    daemon.close()
    return folder


@pytest.mark.usefixtures("llama_cpp")
def test_paths_folders_and_aliases_mean_the_same_model(model_folder: Path, start_daemon: StartDaemon) -> None:
    config = f"""
[aliases]
tale = "folder:Story"
[plugins.folder]
folders = ["{model_folder}"]
"""
    with start_daemon(config=config).client() as client:

        def text(reference: str) -> str:
            return client.generate(reference, "Hello", temperature=0, max_tokens=8).result().text

        assert text("tiny") == text(str(model_folder / "Story.gguf")) == text("folder:Story") == text("tale") != ""
        listed = {model.name: model for model in client.models()}
        assert "tale" in [alias for model in listed.values() for alias in model.aliases]
        assert any(model.source == "folder" for model in listed.values())


@pytest.mark.usefixtures("llama_cpp")
def test_no_reference_means_the_default_model(start_daemon: StartDaemon) -> None:
    with start_daemon({"ENCLAVE_DEFAULT_MODEL": "fake:mine"}).client() as client:
        assert client.generate(None, "x", max_tokens=1).result().receipt.model == "fake:mine"


def test_a_name_that_is_nearly_right_is_pointed_at(daemon: RunningDaemon) -> None:
    with daemon.client() as client, pytest.raises(enclave.EnclaveError) as error:
        client.generate("tinny", "x").result()
    assert error.value.code == "model_not_found"
    assert "tiny" in (error.value.hint or "")


def test_an_alias_that_leads_back_to_itself_is_refused(start_daemon: StartDaemon) -> None:
    with start_daemon(config='[aliases]\na = "b"\nb = "a"\n').client() as client:
        with pytest.raises(enclave.EnclaveError) as error:
            client.generate("a", "x").result()
        assert error.value.code == "bad_reference"


@pytest.mark.usefixtures("llama_cpp")
def test_the_backend_can_be_chosen(daemon: RunningDaemon) -> None:
    with daemon.client() as client:
        assert client.generate("tiny", "x", max_tokens=1, backend="llama_cpp").result().receipt.backend == "llama_cpp"
        for backend, code in (("fake", "unsupported_model"), ("nothing", "no_backend")):
            with pytest.raises(enclave.EnclaveError) as error:
                client.generate("tiny", "x", max_tokens=1, backend=backend).result()
            assert error.value.code == code


@pytest.mark.usefixtures("llama_cpp")
def test_a_model_file_needs_no_suffix(daemon: RunningDaemon, tmp_path: Path) -> None:
    with daemon.client() as client:
        tiny = next(model.path for model in client.models() if model.name == "tiny")
        assert tiny is not None
        blob = tmp_path / "sha256-0123"
        shutil.copy(tiny, blob)
        assert client.generate(str(blob), "x", max_tokens=1).result().receipt.backend == "llama_cpp"
        (tmp_path / "letter").write_text("Dear reader")
        with pytest.raises(enclave.EnclaveError) as error:
            client.generate(str(tmp_path / "letter"), "x").result()
        assert error.value.code == "no_backend"
        assert "not a GGUF file" in error.value.message


@pytest.mark.usefixtures("llama_cpp")
def test_many_first_requests_get_the_embedded_model_at_once(daemon: RunningDaemon) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(daemon.client()) for _ in range(8)]
        streams = [client.generate("tiny", "x", max_tokens=1) for client in clients]
        instances = {stream.result().receipt.instance for stream in streams}
    assert len(instances) == 1


def test_a_file_that_was_replaced_is_another_model(daemon: RunningDaemon, tmp_path: Path) -> None:
    with daemon.client() as client:
        tiny = next(model.path for model in client.models() if model.name == "tiny")
        assert tiny is not None
        path = tmp_path / "model.gguf"
        shutil.copy(tiny, path)
        before = client.generate(str(path), "x", max_tokens=1).result().receipt
        path.unlink()
        shutil.copy(tiny, tmp_path / "new.gguf")
        (tmp_path / "new.gguf").rename(path)
        after = client.generate(str(path), "x", max_tokens=1).result().receipt
    assert before.instance != after.instance
    assert before.model_hash != after.model_hash
