"""The command line with a fake daemon behind it, in this process and in one of its own."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .fake_daemon import FakeDaemon

FAKE_DAEMON = Path(__file__).with_name("fake_daemon.py")


def _imported(path: Path) -> ModuleType:
    # The test folders are no packages, and their modules not on the path.
    spec = importlib.util.spec_from_file_location(f"enclave_cli_tests_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


fake_daemon = _imported(FAKE_DAEMON)


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    exit_code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one document on standard output."""
        return json.loads(self.out)

    @property
    def json_lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


Run = Callable[..., Done]
"""Takes the arguments, and what is piped in as `stdin`."""


@pytest.fixture
def daemon() -> FakeDaemon:
    """The daemon that `run` reaches; tests change it before they run a command."""
    return fake_daemon.FakeDaemon()


@pytest.fixture
def run(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs one command line in this process."""
    from enclave_cli.main import execute

    def run(*arguments: str, stdin: bytes | None = None) -> Done:
        piped = tmp_path / "stdin"
        piped.write_bytes(stdin or b"")
        with piped.open("rb") if stdin is not None else Path(os.devnull).open("rb") as file:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(file))
            code = execute(arguments, daemon.connect)
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return run


@dataclass(frozen=True)
class Script:
    """The command line in a process of its own, whose fake daemon is described by keyword arguments of FakeDaemon."""

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, str(FAKE_DAEMON), *arguments]

    def environment(self, wanted: Mapping[str, Any], report_descriptor: int | None = None) -> dict[str, str]:
        environment = {**os.environ, "FAKE_DAEMON": json.dumps(dict(wanted))}
        if report_descriptor is not None:
            environment["FAKE_DAEMON_FD"] = str(report_descriptor)
        return environment

    def run(self, *arguments: str, stdin: bytes = b"", **wanted: Any) -> Done:
        done = subprocess.run(
            self.command(*arguments), input=stdin, capture_output=True, env=self.environment(wanted), check=False
        )
        return Done(done.returncode, done.stdout.decode(), done.stderr.decode())

    @contextmanager
    def running(
        self, *arguments: str, stdout: int = subprocess.PIPE, stdin: int = subprocess.DEVNULL, **wanted: Any
    ) -> Generator[tuple[subprocess.Popen[bytes], Any]]:
        """The command while it runs, and what its daemon reports, a word a line."""
        reading, writing = os.pipe()
        process = subprocess.Popen(
            self.command(*arguments),
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            env=self.environment(wanted, writing),
            pass_fds=(writing,),
        )
        os.close(writing)
        with process, os.fdopen(reading) as reports:
            try:
                yield process, reports
            finally:
                process.kill()


@pytest.fixture
def script() -> Script:
    return Script()
