"""Fixtures for tests with a real daemon."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.running import SHARED_MODELS, RunningDaemon

StartDaemon = Callable[..., RunningDaemon]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An ENCLAVE_HOME with a path short enough for a socket in it or not, as pytest makes them."""
    folder = tmp_path / "home"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def start_daemon(home: Path) -> Iterator[StartDaemon]:
    """Starts a daemon with this environment and configuration; it is ended after the test."""
    started: list[RunningDaemon] = []

    def start(environment: dict[str, str] | None = None, config: str = "") -> RunningDaemon:
        started.append(RunningDaemon(home, environment, config))
        return started[-1]

    yield start
    for daemon in started:
        daemon.close()


@pytest.fixture
def daemon(start_daemon: StartDaemon) -> RunningDaemon:
    """A daemon with the settings of a fresh home."""
    return start_daemon()


@pytest.fixture
def llama_cpp() -> None:
    """Skips where llama.cpp is not installed."""
    if find_spec("llama_cpp") is None:
        pytest.skip("llama_cpp is not installed")


@pytest.fixture
def shared_models() -> Path:
    """Skips where the folder of small real models is not beside the project."""
    if not SHARED_MODELS.is_dir():
        pytest.skip(f"no models at {SHARED_MODELS}")
    return SHARED_MODELS
