"""Plugins as people install them: found by entry point, and a bad one is a line instead of a dead daemon."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import enclave
from tests.conftest import StartDaemon
from tests.running import RunningDaemon, run_enclave

SPARE_BACKEND = """
from enclaved.plugin.hookspecs import Source, hookimpl
from enclaved.plugin.model import ModelEntry, ModelName

ENCLAVE_API_VERSION = {version}

class Attic(Source):
    name = "attic"

    def models(self, context):
        return [ModelEntry(ModelName("attic:old"), "attic", ())]

    def resolve(self, reference, context):
        return None

@hookimpl
def enclave_sources():
    return [Attic()]
"""


def install(folder: Path, name: str, code: str) -> None:
    """A distribution as pip leaves it: a module, and metadata with an entry point."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}_plugin.py").write_text(code)
    information = folder / f"{name}-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[enclaved.plugins]\n{name} = {name}_plugin\n")


@pytest.fixture
def with_strangers(tmp_path: Path, start_daemon: StartDaemon) -> RunningDaemon:
    """A daemon beside whose own plugins four strangers are installed."""
    folder = tmp_path / "site"
    install(folder, "attic", SPARE_BACKEND.format(version=1))
    install(folder, "old", SPARE_BACKEND.format(version=99))
    install(folder, "broken", "import a_module_that_is_not_there\n")
    install(folder, "leaving", "raise SystemExit(3)\n")
    return start_daemon({"PYTHONPATH": str(folder)})


def test_an_installed_plugin_is_found_and_bad_ones_are_lines(with_strangers: RunningDaemon) -> None:
    with with_strangers.client() as client:
        lines = {line.name: line for line in client.plugins()}
        assert lines["attic"].state == "ready"
        assert lines["attic"].version == "1.0"
        assert {name for name, line in lines.items() if line.state == "failed"} == {"old", "broken", "leaving"}
        assert "a_module_that_is_not_there" in (lines["broken"].problem or "")
        assert "99" in (lines["old"].problem or "")
        assert "attic:old" in [model.name for model in client.models()]
        assert client.generate("fake:a", "x", max_tokens=1).result().text
        assert client.health().status == "degraded"


def test_the_command_line_shows_them(with_strangers: RunningDaemon) -> None:
    told = run_enclave("plugins", home=with_strangers.home)
    assert told.returncode == 0
    assert "a_module_that_is_not_there" in told.stdout


def test_only_the_named_plugins_are_loaded(start_daemon: StartDaemon) -> None:
    with start_daemon({"ENCLAVE_PLUGINS": "fake"}).client() as client:
        assert [line.name for line in client.plugins()] == ["fake"]


STUCK_SOURCE = """
import time
from enclaved.plugin.hookspecs import Source, hookimpl

ENCLAVE_API_VERSION = 1

class Stuck(Source):
    name = "stuck"

    def models(self, context):
        time.sleep(1000)
        return []

    def resolve(self, reference, context):
        raise RuntimeError("this source is broken")

@hookimpl
def enclave_sources():
    return [Stuck()]
"""


@pytest.fixture
def with_a_stuck_source(tmp_path: Path, start_daemon: StartDaemon) -> RunningDaemon:
    """A daemon with a source that never answers for its models, and fails at each reference."""
    install(tmp_path / "site", "astuck", STUCK_SOURCE)
    return start_daemon({"PYTHONPATH": str(tmp_path / "site")})


def test_a_source_that_fails_does_not_hide_the_others(with_a_stuck_source: RunningDaemon) -> None:
    with with_a_stuck_source.client() as client:
        assert client.generate("fake:a", "x", max_tokens=1).result().text


def test_a_source_that_never_answers_does_not_keep_the_daemon_from_ending(with_a_stuck_source: RunningDaemon) -> None:
    daemon = with_a_stuck_source
    with daemon.client() as client, ThreadPoolExecutor(1) as pool:
        listing = pool.submit(client.models)
        assert daemon.terminate() == 0
        with pytest.raises(enclave.EnclaveError) as error:
            listing.result()
        assert error.value.code in ("shutting_down", "connection_lost")
