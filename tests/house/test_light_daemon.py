"""A running daemon holds no model code: its own modules, after it has loaded every plugin and served a request."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import enclave
from tests.running import END_SECONDS, START_SECONDS, daemon_environment, read_line

HEAVY = (
    "enclaved.worker",
    "enclaved.fetcher",
    "enclaved.testing",
    "huggingface_hub",
    "jinja2",
    "llama_cpp",
    "numpy",
    "onnx",
    "onnxruntime",
    "tokenizers",
    "torch",
    "transformers",
)
"""What only a child may load. A crash, a hang or a leak there must not be the daemon's."""

NETWORK = ("http", "requests", "httpx", "aiohttp", "urllib3")
"""What only the process that may reach the internet has a use for."""

PROGRAM = """
import json, sys
from enclaved.daemon.main import main
try:
    main(["--ready-fd", sys.argv[2]])
finally:
    with open(sys.argv[1], "w") as file:
        json.dump(sorted(sys.modules), file)
"""
"""The daemon, and a list of its modules when it ends."""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The daemon's modules at its end."""
    home = tmp_path_factory.mktemp("home", numbered=True)
    home.chmod(0o700)
    listing = home / "modules.json"
    ready, ready_child = os.pipe()
    with (home / "stderr").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", PROGRAM, str(listing), str(ready_child)],
            env=daemon_environment(home),
            pass_fds=(ready_child,),
            stderr=log,
        )
    os.close(ready_child)
    try:
        endpoint = json.loads(read_line(ready, START_SECONDS))["endpoint"]
        with enclave.Client(endpoint=endpoint, start=False) as client:
            assert client.generate("fake:x", "hello", max_tokens=3).result().usage.completion_tokens == 3
            assert client.plugins()
            client.models()
        process.send_signal(signal.SIGTERM)
        assert process.wait(END_SECONDS) == 0, (home / "stderr").read_text()
    finally:
        os.close(ready)
        if process.poll() is None:
            process.kill()
            process.wait()
    return json.loads(listing.read_text())


def named(modules: list[str], packages: tuple[str, ...]) -> list[str]:
    return [name for name in modules if any(name == p or name.startswith(f"{p}.") for p in packages)]


def test_it_has_loaded_the_light_half_of_every_plugin_of_this_repository(loaded: list[str]) -> None:
    folders = Path(__file__).parents[2].glob("plugins/*/enclave_*/plugin.py")
    assert {f"{path.parent.name}.plugin" for path in folders} <= set(loaded)


def test_it_holds_no_model_code(loaded: list[str]) -> None:
    assert "enclaved.daemon.app" in loaded
    assert named(loaded, HEAVY) == []


def test_it_holds_no_heavy_half_of_a_plugin(loaded: list[str]) -> None:
    heavy = [name for name in loaded if name.startswith("enclave_") and name.rpartition(".")[2] in ("engine", "gguf")]
    # The built-in model's file is written once, by code that is imported only then.
    assert [name for name in heavy if not name.startswith("enclave_builtin.")] == []


def test_it_holds_nothing_that_speaks_to_the_internet(loaded: list[str]) -> None:
    assert named(loaded, NETWORK) == []


def test_it_holds_no_client(loaded: list[str]) -> None:
    assert named(loaded, ("enclave.client", "enclave.aio", "enclave.discovery", "enclave_cli")) == []
