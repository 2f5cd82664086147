"""Tables that must stay complete: reasons to codes, link fields to checks, codes to rows, distributions to names."""

from __future__ import annotations

import ast
import re
import tomllib
from dataclasses import fields
from typing import Any, cast, get_args

import pytest

from enclave.protocol.errors import CLIENT_SIDE_CODES, ERROR_CODES
from enclave.protocol.methods import METHODS
from enclaved.core import events
from enclaved.core.reasons import Why
from enclaved.daemon.broker.reasons import REASONS, refusal_of
from enclaved.link import messages
from tests.house.imports import ROOT, modules, starts_with

DISTRIBUTIONS = {
    "enclaved": ".",
    "enclaved-client": "clients/python",
    "enclaved-cli": "clients/cli",
    "enclaved-llama-cpp": "plugins/llama_cpp",
    "enclaved-folder": "plugins/folder",
    "enclaved-builtin": "plugins/builtin",
    "enclaved-fake": "plugins/fake",
}
"""Every distribution by the folder of its pyproject.toml."""

TAKEN_NAME = "enclave"
"""Somebody else's distribution on the public index; ours imports as `enclave` and is called `enclaved-client`."""


def project(folder: str) -> dict[str, object]:
    return tomllib.loads((ROOT / folder / "pyproject.toml").read_text(encoding="utf-8"))


def required(folder: str) -> set[str]:
    """The distributions that a pyproject.toml names in any list of requirements."""
    metadata = project(folder)
    own = cast("dict[str, Any]", metadata["project"])
    lists: list[list[str]] = [own.get("dependencies", []), *own.get("optional-dependencies", {}).values()]
    lists += cast("dict[str, list[str]]", metadata.get("dependency-groups", {})).values()
    lists.append(cast("dict[str, list[str]]", metadata["build-system"])["requires"])
    return {re.split(r"[\s\[;<>=!~]", text)[0].lower() for requirements in lists for text in requirements}


# --- reasons and codes ---


@pytest.mark.parametrize("why", Why, ids=lambda why: why.name)
def test_every_reason_of_the_core_has_a_row_with_a_known_code(why: Why) -> None:
    assert REASONS[why].code in ERROR_CODES
    assert REASONS[why].code not in CLIENT_SIDE_CODES


@pytest.mark.parametrize("why", Why, ids=lambda why: why.name)
def test_every_reason_is_given_by_somebody(why: Why) -> None:
    given = [
        name
        for name, path in modules().items()
        if starts_with(name, "enclaved.core", "enclaved.daemon")
        and name not in ("enclaved.core.reasons", "enclaved.daemon.broker.reasons")
        and re.search(rf"(Reason\(\s*|= |else )Why\.{why.name}\b", path.read_text(encoding="utf-8"))
    ]
    assert given


@pytest.mark.parametrize("why", Why, ids=lambda why: why.name)
def test_the_numbers_in_a_message_are_those_that_the_reason_brings(why: Why) -> None:
    """Each name in braces stands, as a number of the reason, where the core gives it."""
    named = set(re.findall(r"\{(\w+)\}", REASONS[why].message))
    source = "".join(
        path.read_text(encoding="utf-8") for name, path in modules().items() if name.startswith("enclaved.core")
    )
    givings = re.findall(rf"Reason\(\s*Why\.{why.name},\s*\{{(.*?)\}}", source, re.DOTALL)
    if re.search(rf"Reason\(Why\.{why.name}, numbers\)", source):
        givings += re.findall(r"numbers = \{(.*?)\}", source, re.DOTALL)
    for giving in givings:
        brought = {name.removesuffix("_bytes") for name in re.findall(r'"(\w+)":', giving)}
        assert named <= brought
    assert givings or not named


def test_a_reason_without_its_numbers_still_gives_an_answer() -> None:
    from enclaved.core.reasons import Reason

    assert "?" in refusal_of(Reason(Why.TOO_LARGE_FOR_MEMORY)).message


def test_every_code_that_the_daemon_says_is_in_the_table() -> None:
    said: dict[str, str] = {}
    for name, path in modules().items():
        if not starts_with(name, "enclaved.daemon", "enclaved.worker"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "RefusalError",
                "RefusedError",
                "Failed",
                "ready.failed",
            ):
                place = 1 if ast.unparse(node.func) == "Failed" else 0
                code = node.args[place]
                if isinstance(code, ast.Constant):
                    said[str(code.value)] = f"{name}:{node.lineno}"
    assert said
    assert {code: where for code, where in said.items() if code not in ERROR_CODES} == {}


def test_every_built_method_is_answered_and_no_other() -> None:
    source = modules()["enclaved.daemon.methods"].read_text(encoding="utf-8")
    answered = set(re.findall(r'"([a-z]+(?:\.[a-z]+)?)": self\._', source)) | {"generate", "embed", "rerank"}
    assert answered == {name for name, method in METHODS.items() if method.built}


# --- the link ---


@pytest.mark.parametrize("message", get_args(messages.Message), ids=lambda cls: cls.__name__)
def test_every_field_of_a_link_message_has_a_check(message: type) -> None:
    checks = messages._CHECKS  # pyright: ignore[reportPrivateUsage]
    assert [slot.name for slot in fields(message) if slot.type not in checks] == []


def test_every_check_of_the_link_is_of_some_field() -> None:
    used = {slot.type for message in get_args(messages.Message) for slot in fields(message)}
    assert set(messages._CHECKS) == used  # pyright: ignore[reportPrivateUsage]


def test_a_link_message_has_one_name_in_both_directions() -> None:
    to_child, from_child = get_args(messages.ToChild), get_args(messages.FromChild)
    names = [cls.__name__ for cls in (*to_child, *from_child)]
    assert len(names) == len(set(names))
    assert set(get_args(messages.Message)) == {*to_child, *from_child}


# --- the core's vocabulary ---


def test_every_event_and_action_says_its_cause() -> None:
    vocabulary = (*get_args(events.Event), *get_args(events.Action))
    assert [cls.__name__ for cls in vocabulary if fields(cls)[0].name != "cause"] == []


def test_every_action_has_its_place_in_the_conductor() -> None:
    source = modules()["enclaved.daemon.conductor"].read_text(encoding="utf-8")
    assert [cls.__name__ for cls in get_args(events.Action) if f"case {cls.__name__}():" not in source] == []


# --- distributions ---


def test_the_distributions_are_these() -> None:
    found = {path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("*/*/pyproject.toml")} | {"."}
    assert found == set(DISTRIBUTIONS.values())
    names = {folder: cast("dict[str, object]", project(folder)["project"])["name"] for folder in found}
    assert names == {folder: name for name, folder in DISTRIBUTIONS.items()}


@pytest.mark.parametrize("folder", DISTRIBUTIONS.values())
def test_the_name_that_somebody_else_has_is_never_required(folder: str) -> None:
    assert required(folder)
    assert TAKEN_NAME not in required(folder)
    assert not re.search(rf"^{TAKEN_NAME}==", (ROOT / "requirements.lock").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("folder", sorted({*DISTRIBUTIONS.values()} - {".", "clients/python", "clients/cli"}))
def test_a_plugin_requires_the_daemon_and_names_its_module(folder: str) -> None:
    metadata = cast("dict[str, dict[str, object]]", project(folder))["project"]
    assert f"enclaved=={metadata['version']}" in cast("list[str]", metadata["dependencies"])
    entry_points = cast("dict[str, dict[str, str]]", metadata["entry-points"])["enclaved.plugins"]
    assert [module for module in entry_points.values() if module not in modules()] == []
