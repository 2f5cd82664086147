"""How every file is written: what it says of itself, how long it is, and what it never holds."""

from __future__ import annotations

import ast
import hashlib
import re
from pathlib import Path

import pytest

from tests.house.imports import ROOT, modules
from tests.house.test_lock import committed_texts

LINES_MAX = 800
APP_LINES_MAX = 200
"""The composition root only ties parts together; what grows there is somebody else's matter."""

REMINDER = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK")) + r")\b")

FOREIGN_WORDS = frozenset(
    {
        "3ea125d0bff386e6754b3782b300016fc79a9cf8f8669c0a5c3db64467ddb681",
        "57de4cf40144bdf7d00010f2f5557a7d642c2b9705309bfade167dd313e2ca93",
        "60965168ce762e949600281ba6d01fee136e5b6e8257b1f216f9025ed324474c",
        "83366499299704fbf3843363ed578738413083de1864e30048a2a7bf5d81e18b",
        "94a168d2da574b00ec6c787377278465271cf2b97e68af076fc3eee87eba8664",
        "c70eca6b0f88f44d81a41311647e50fda1ac454ec04ffd442b0eb4743a993131",
        "c857d09db23e6822e3600bc06ad8d58f92ed62bc8efd81c753f77048662cb97d",
        "d298391b07433318a02bd922ed5b90112a4302606c4928b54e3fb1c18130d92e",
    }
)
"""SHA-256 of words that have no business in a product: whose machine it was made on and with which tools. As hashes,
so that this file does not hold them either."""

python_files = sorted(
    path
    for folder in ("enclaved", "clients", "plugins", "packaging", "tests", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
    if "__pycache__" not in path.parts
)
product_files = [path for path in python_files if "tests" not in path.relative_to(ROOT).parts]

SELF_EXPLAINING = frozenset({"enclaved.sandbox.probes"})
"""Modules with functions whose names are their whole description: each is one way to try to get out."""


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", product_files, ids=name_of)
def test_a_module_says_what_it_is(path: Path) -> None:
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert said, "the first line of a module is a sentence about it"
    assert len(said.splitlines()[0]) > 10


@pytest.mark.parametrize("path", python_files, ids=name_of)
def test_a_module_evaluates_its_annotations_late(path: Path) -> None:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    only_a_docstring = len(body) <= 1
    assert only_a_docstring or any(isinstance(n, ast.ImportFrom) and n.module == "__future__" for n in body)


@pytest.mark.parametrize("path", python_files, ids=name_of)
def test_a_module_is_short_enough_to_read(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LINES_MAX


def test_the_composition_root_is_short() -> None:
    assert len(modules()["enclaved.daemon.app"].read_text(encoding="utf-8").splitlines()) <= APP_LINES_MAX


def test_every_public_class_and_function_of_the_daemon_says_what_it_is() -> None:
    silent = [
        f"{name}:{node.lineno} {node.name}"
        for name, path in modules().items()
        if name.startswith("enclaved") and name not in SELF_EXPLAINING
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and not node.name.startswith("_")
        and ast.get_docstring(node) is None
    ]
    assert silent == []


def test_no_committed_file_holds_a_reminder() -> None:
    found = {path.relative_to(ROOT): hit[0] for path, text in committed_texts() if (hit := REMINDER.search(text))}
    assert found == {}


def test_no_committed_file_speaks_of_where_it_was_made() -> None:
    found: dict[str, set[str]] = {}
    for path, text in committed_texts():
        words = set(re.findall(r"[a-z]{4,}", text.lower()))
        foreign = {word for word in words if hashlib.sha256(word.encode()).hexdigest() in FOREIGN_WORDS}
        if foreign:
            found[name_of(path)] = foreign
    assert found == {}
