"""The pages say what the code has: a row for each name that users meet, paths that exist, links that lead somewhere."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, get_args
from urllib.parse import unquote

import pytest

import enclave
from enclave.protocol.errors import ERROR_CODES
from enclave.protocol.methods import METHODS
from enclave_cli.errors import MEANINGS
from enclave_cli.lazy import COMMANDS
from enclave_fake.knobs import Knobs
from enclaved.core import events
from enclaved.daemon import main
from enclaved.daemon.config import describe
from enclaved.plugin.engine import Engine
from enclaved.plugin.hookspecs import Backend, Hooks, Source
from enclaved.plugin.manager import load_plugins
from tests.house.imports import ROOT, modules

PAGES = sorted(
    path for pattern in ("*.md", "docs/**/*.md", "clients/*/*.md", "plugins/*/*.md") for path in ROOT.glob(pattern)
)
EXPECTED = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "docs/architecture.md",
    "docs/bridge.md",
    "docs/cli.md",
    "docs/operations.md",
    "docs/plugins.md",
    "docs/protocol.md",
    "docs/python.md",
    "docs/scheduling.md",
    "docs/security.md",
)

MENTION = re.compile(r"`([\w./-]+\.(?:py|md|toml|sh)|Makefile)(?::([A-Za-z_][\w.]*))?`")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")


@cache
def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@cache
def named(page: str) -> dict[str, list[list[str]]]:
    """What a page names in code type at the start of a table row, or in a heading; with the cells of the rows."""
    found: dict[str, list[list[str]]] = {}
    for line in FENCE.sub("", text_of(page)).splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")] if line.startswith("|") else [line]
        if line.startswith(("|", "#")):
            for name in re.findall(r"`([^`]+)`", cells[0]):
                found.setdefault(name, []).append(cells)
    return found


def missing(page: str, names: Mapping[str, object] | list[str] | tuple[str, ...]) -> list[str]:
    known = named(page)
    bare = {re.split(r"[ (]", name)[0] for name in known}
    return [name for name in names if name not in known and name not in bare]


# --- a row or a heading for each name ---


@pytest.mark.parametrize("page", EXPECTED)
def test_the_page_is_there(page: str) -> None:
    assert text_of(page).startswith("# ")


def test_every_method_of_the_client_is_in_its_page() -> None:
    page = text_of("docs/python.md")
    names = [name for name in vars(enclave.Client) if not name.startswith("_")]
    assert [name for name in names if f"`{name}`" not in page and f".{name}(" not in page] == []


def test_every_method_is_in_the_protocols_page() -> None:
    assert missing("docs/protocol.md", METHODS) == []


@pytest.mark.parametrize("page", ["docs/protocol.md", "docs/operations.md"])
def test_every_error_code_is_told(page: str) -> None:
    assert missing(page, ERROR_CODES) == []


def test_the_troubleshooting_table_tells_of_no_other_code() -> None:
    table = text_of("docs/operations.md").partition("## Troubleshooting by error code")[2].partition("**A plugin")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(ERROR_CODES)


def all_settings() -> list[tuple[str, str, Any, str]]:
    plugins = load_plugins().settings.items()
    return describe(dict(main.TABLES) | {f"plugins.{name}": table.settings for name, table in plugins})


def as_toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    return "[]" if value == () else str(value)


@pytest.mark.parametrize("row", all_settings(), ids=lambda row: row[0])
def test_every_setting_is_told_with_its_default_its_variable_and_its_meaning(row: tuple[str, str, Any, str]) -> None:
    name, variable, default, meaning = row
    ((_, told_default, told_variable, told_meaning),) = named("docs/operations.md")[name]
    assert told_default == f"`{as_toml(default)}`"
    assert told_variable == f"`{variable}`"
    assert told_meaning.startswith(meaning.partition(";")[0].rstrip("."))


def test_the_settings_table_tells_of_nothing_else() -> None:
    table = text_of("docs/operations.md").partition("| setting |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `([\w.]+)` \|", table, re.MULTILINE)) == {row[0] for row in all_settings()}


def test_the_example_configuration_is_accepted() -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", text_of("docs/operations.md"), re.DOTALL)
    from enclaved.daemon.config import load_config

    plugins = load_plugins().settings.items()
    declared = dict(main.TABLES) | {f"plugins.{name}": table.settings for name, table in plugins}
    assert load_config(example, {}, declared, "the example").table("instances", declared["instances"])


def test_every_event_and_action_of_the_core_is_told_and_no_other() -> None:
    page = text_of("docs/scheduling.md")
    for heading, kinds in (("## Events", events.Event), ("## Actions", events.Action)):
        table = page.partition(f"{heading}\n")[2].partition("\n## ")[0]
        told = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
        assert sorted(told) == sorted(cls.__name__ for cls in get_args(kinds))


def test_every_hook_has_its_heading_with_its_own_words_and_an_example() -> None:
    page = text_of("docs/plugins.md")
    hooks = {name: hook.__doc__ for name, hook in vars(Hooks).items() if name.startswith("enclave_")}
    assert re.findall(r"^### `(enclave_\w+)`$", page, re.MULTILINE) == list(hooks)
    for name, said in hooks.items():
        section = page.partition(f"### `{name}`\n")[2].partition("\n##")[0]
        assert " ".join(said.split()) in " ".join(section.split())
        assert f"def {name}(" in section


@pytest.mark.parametrize("kind", [Engine, Backend, Source], ids=lambda kind: kind.__name__)
def test_every_member_of_what_a_plugin_implements_is_told(kind: type) -> None:
    annotated = list(kind.__annotations__)
    methods = [name for name, value in vars(kind).items() if getattr(value, "__isabstractmethod__", False)]
    assert methods
    assert missing("docs/plugins.md", [*annotated, *methods]) == []


def test_every_knob_of_the_fake_backend_is_told() -> None:
    knobs = [slot.name for slot in dataclasses.fields(Knobs)]
    table = text_of("docs/plugins.md").partition("| knob |")[2]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == knobs


def test_every_exit_code_of_the_command_line_is_told_in_its_words() -> None:
    page = text_of("docs/cli.md")
    assert [code for code, meaning in MEANINGS.items() if f"| {code.value} | {meaning} |" not in page] == []


def test_every_exit_code_of_the_daemon_is_told() -> None:
    section = text_of("docs/operations.md").partition("### Exit codes of `enclaved`")[2].partition("\n## ")[0]
    told = {int(code) for code in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)}
    usage = 2  # argparse's own
    assert told == {0, usage, main.EXIT_FAILED, main.EXIT_ALREADY_RUNNING}


def test_every_command_is_told() -> None:
    assert [name for name in COMMANDS if f"\n## `enclave {name}`" not in text_of("docs/cli.md")] == []


def test_a_hint_or_a_page_names_no_command_that_is_not_there() -> None:
    sources = [*modules().values(), *PAGES]
    named_commands = {
        (path.relative_to(ROOT).as_posix(), name)
        for path in sources
        for name in re.findall(r"`enclave ([a-z]+)", path.read_text(encoding="utf-8"))
    }
    assert {found for found in named_commands if found[1] not in COMMANDS} == set()


def test_every_command_of_the_makefile_is_told() -> None:
    targets = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    page = text_of("CONTRIBUTING.md")
    assert [target for target in targets if f"`make {target}" not in page] == []


def test_the_readme_begins_with_the_two_commands() -> None:
    first = re.search(r"```console\n(.*?)```", text_of("README.md"), re.DOTALL)
    assert first is not None
    assert text_of("README.md").index("```console") < 40
    assert [line.split("#")[0].strip() for line in first[1].splitlines()] == ["$ make run", "$ make test"]


# --- what pages name exists ---


def definitions(path: Path) -> set[str]:
    """`function`, `Class`, `Class.method` and module-level names of a file."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            found.add(node.name)
            if isinstance(node, ast.ClassDef):
                inner = (n for n in node.body if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)))
                found |= {f"{node.name}.{each.name}" for each in inner}
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def files_named() -> list[tuple[str, str, str | None]]:
    return [
        (page.relative_to(ROOT).as_posix(), path, name or None)
        for page in PAGES
        for path, name in MENTION.findall(FENCE.sub("", page.read_text(encoding="utf-8")))
        if "/" in path and not path.startswith(("enclave_parrot/", "config/", "run/"))
    ]


@pytest.mark.parametrize(("page", "path", "name"), files_named(), ids=str)
def test_a_file_and_a_name_in_it_that_a_page_mentions_exist(page: str, path: str, name: str | None) -> None:
    where = next((base / path for base in (ROOT, (ROOT / page).parent) if (base / path).is_file()), None)
    assert where is not None
    assert name is None or name in definitions(where)


def test_the_journey_goes_through_every_process() -> None:
    journey = text_of("docs/architecture.md").partition("## The journey")[2].partition("\n## ")[0]
    paths = [path for path, name in MENTION.findall(journey) if name]
    assert len(paths) > 20
    for stop in (
        "clients/cli/enclave_cli/main.py",
        "clients/python/enclave/client.py",
        "enclaved/daemon/broker/broker.py",
        "enclaved/daemon/methods.py",
        "enclaved/daemon/conductor.py",
        "enclaved/core/step.py",
        "enclaved/daemon/hands.py",
        "enclaved/daemon/supervisor/supervisor.py",
        "enclaved/worker/loop.py",
        "plugins/llama_cpp/enclave_llama_cpp/engine.py",
    ):
        assert stop in paths


def test_the_short_names_in_the_journey_exist() -> None:
    """`Class.method` without a path is of a class that the journey named with its path, or that is in the project."""
    journey = text_of("docs/architecture.md").partition("## The journey")[2].partition("\n## ")[0]
    everything: set[str] = set()
    for path in (*ROOT.glob("enclaved/**/*.py"), *ROOT.glob("clients/**/*.py"), *ROOT.glob("plugins/**/*.py")):
        everything |= definitions(path)
    short = re.findall(r"`([A-Z]\w+\.[a-z_]\w*)`", journey)
    assert short
    assert [name for name in short if name not in everything] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_folder_that_a_page_mentions_exists(page: Path) -> None:
    folders = re.findall(
        r"`((?:enclaved|clients|plugins|tests|docs|packaging)/[\w./*]*/)`", page.read_text(encoding="utf-8")
    )
    assert [folder for folder in folders if not any(ROOT.glob(folder.rstrip("/")))] == []


# --- links ---


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings get: small letters, spaces as hyphens, no punctuation."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(page: Path) -> None:
    prose = CODE.sub("", FENCE.sub("", page.read_text(encoding="utf-8")))
    broken: list[str] = []
    for link in LINK.findall(prose):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = unquote(link).partition("#")
        file = (page.parent / target).resolve() if target else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(link)
    assert broken == []
