"""The examples of the pages run: the README's Python, and the tutorial's backend in the kit and in a real daemon."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from enclave_cli.lazy import COMMANDS
from enclaved.plugin.installed import InstalledPlugin
from enclaved.plugin.manager import load_plugins
from enclaved.testing import check_backend
from tests.house.imports import ROOT
from tests.running import END_SECONDS, RunningDaemon, daemon_environment, wait_ended

FILE = re.compile(r"^\*\*`([\w./]+)`\*\*\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)

TEXT = "the cat sat on the mat."


def fenced(page: str, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


@pytest.fixture
def tutorial(tmp_path: Path) -> Path:
    """A folder with the tutorial's files, as an installer would leave them."""
    folder = tmp_path / "site"
    files = dict(FILE.findall((ROOT / "docs/plugins.md").read_text(encoding="utf-8")))
    assert sorted(files) == [
        "enclave_parrot/engine.py",
        "enclave_parrot/header.py",
        "enclave_parrot/plugin.py",
        "pyproject.toml",
    ]
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    (folder / "enclave_parrot/__init__.py").touch()
    information = folder / "enclave_parrot-0.1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: enclave-parrot\nVersion: 0.1.0\n\n")
    (entry_point,) = re.findall(r"^\[project\.entry-points\.\"(.+)\"\]\n(.+)$", files["pyproject.toml"], re.MULTILINE)
    (information / "entry_points.txt").write_text(f"[{entry_point[0]}]\n{entry_point[1].replace(chr(34), '')}\n")
    return folder


@pytest.fixture
def importable(tutorial: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(sys, "path", [str(tutorial), *sys.path])
    importlib.invalidate_caches()
    yield tutorial
    for name in [name for name in sys.modules if name.startswith("enclave_parrot")]:
        del sys.modules[name]


def test_the_tutorials_light_half_is_accepted_as_a_plugin(importable: Path) -> None:
    plugins = load_plugins(entry_points=lambda: [InstalledPlugin("parrot", "enclave_parrot.plugin")])
    assert [(line.state, line.problem, line.kinds) for line in plugins.lines] == [("ready", None, ("backend",))]


def test_the_tutorials_test_is_the_kit_and_passes(importable: Path) -> None:
    (test,) = [code for code in fenced("docs/plugins.md", "python") if "def test_the_parrot" in code]
    engine = importlib.import_module("enclave_parrot.engine").ParrotEngine
    scope: dict[str, object] = {"check_backend": check_backend, "ParrotEngine": engine}
    exec(compile(test, "docs/plugins.md", "exec"), scope)  # noqa: S102  the page's own example
    run = scope["test_the_parrot_keeps_the_engine_contract"]
    assert callable(run)
    run()


def test_the_tutorials_reader_refuses_what_is_no_parrot(importable: Path, tmp_path: Path) -> None:
    reader = importlib.import_module("enclave_parrot.header").read_header
    from enclaved.plugin.model import HeaderError

    for content in (b"", b"parrot 1\n", b"GGUF", b"parrot 1\n" + bytes(2**20 + 1)):
        path = tmp_path / "file"
        path.write_bytes(content)
        with path.open("rb") as file, pytest.raises(HeaderError):
            reader(file, len(content))


def test_a_daemon_serves_a_model_with_the_tutorials_backend(
    tutorial: Path, start_daemon: Callable[..., RunningDaemon], tmp_path: Path
) -> None:
    model = tmp_path / "cat.parrot"
    model.write_text(f"parrot 1\n{TEXT}")
    daemon = start_daemon({"PYTHONPATH": str(tutorial)})
    with daemon.client() as client:
        assert {plugin.name: plugin.state for plugin in client.plugins()}["parrot"] == "ready"
        answer = client.generate(str(model), "the ", max_tokens=12, temperature=0).result()
        assert client.show(str(model)).header is not None
    assert answer.text
    assert set(answer.text) <= set(TEXT)


@pytest.mark.usefixtures("llama_cpp")
def test_the_readmes_python_runs(daemon: RunningDaemon, home: Path) -> None:
    (example,) = fenced("README.md", "python")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(example)],
        env=daemon_environment(home, {"PATH": os.environ.get("PATH", "")}),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Usage(" in done.stdout
    assert "'tiny'" in done.stdout
    assert daemon.process.poll() is None


STOP = "import enclave; client = enclave.Client(start=False); print(client.info().pid); client.shutdown()"


@pytest.fixture(scope="module")
def own_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a home whose daemon the examples start themselves, and one of them ends."""
    home = tmp_path_factory.mktemp("home")
    home.chmod(0o700)
    environment = daemon_environment(home)
    yield environment
    done = subprocess.run([sys.executable, "-c", STOP], env=environment, capture_output=True, text=True, check=True)
    assert wait_ended([int(done.stdout)], END_SECONDS) == []


@pytest.mark.usefixtures("llama_cpp")
@pytest.mark.parametrize(
    ("number", "said"),
    list(
        enumerate(
            [
                r"length 24\nReceipt\(model='tiny', model_hash='file:[0-9a-f-]+', backend='llama_cpp'",
                r"",
                r"prompt: 0 of \d+",
                r"the last is answered: True",
                r"20 answers",
                r"20 different answers",
                r"model_not_found - .*(.|\n)*context_exceeded False \{",
                r"lost: request \d+ \(generate of tiny\)\nand on: ok",
                r"tiny \d+ (.|\n)*tiny ready \d+",
                r"at first: (.|\n)* removed i\d+ unloading",
                r"event RequestArrived because of None",
                r"",
            ]
        )
    ),
)
def test_a_python_example_runs(number: int, said: str, own_daemon: dict[str, str]) -> None:
    examples = fenced("docs/python.md", "python")
    assert len(examples) == 12
    done = subprocess.run(
        [sys.executable, "-c", examples[number]],
        env=own_daemon,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(said, done.stdout), done.stdout


@pytest.mark.parametrize(
    "page", ["README.md", "docs/operations.md", "docs/scheduling.md", "docs/security.md", "docs/plugins.md"]
)
def test_the_commands_on_a_page_exist_with_their_options(page: str) -> None:
    from enclave_cli.main import commands

    lines = [line for block in fenced(page, "console") for line in block.splitlines() if "enclave " in line]
    assert lines
    for line in lines:
        words = re.sub(r'"[^"]*"', "TEXT", line.split("#")[0]).split("enclave ", 1)[1].split(" | ")[0].split()
        assert words[0] in COMMANDS, line
        command = commands.get_command(None, words[0])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        assert command is not None
        known = {option for parameter in command.params for option in parameter.opts}
        assert [word for word in words[1:] if word.startswith("-") and word not in known] == [], line
