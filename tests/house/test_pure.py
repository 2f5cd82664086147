"""The modules that decide: no clock, no chance, no I/O in them, nor in anything of ours that they import."""

from __future__ import annotations

import pytest

from tests.house.imports import ROOT, imports_of, modules, ours, starts_with

PURE = (
    "enclaved.core",
    "enclaved.link",
    "enclaved.sandbox.tables",
    "enclaved.sandbox.filter",
    "enclaved.worker.plan",
    "enclaved.worker.generation",
    "enclaved.worker.sampling",
    "enclaved.worker.text",
    "enclaved.daemon.needs",
    "enclaved.daemon.config",
    "enclaved.daemon.refusal",
    "enclaved.daemon.broker.reasons",
    "enclaved.plugin.engine",
    "enclaved.plugin.model",
    "enclaved.plugin.plain",
    "enclave.protocol",
    "enclave.calls",
    "enclave.conversation",
    "enclave.results",
    "enclave_llama_cpp.memory",
    "enclave_llama_cpp.tensor_types",
    "enclave_fake.knobs",
    "enclave_fake.sampling",
)
"""Modules and packages that decide. A plugin's and a client's own are in the list because they say so."""

TYPES_ONLY = ("enclaved.plugin.hookspecs", "enclave.exceptions", "enclave_fake.plugin")
"""What pure modules may import besides: types and tables, whose own imports obey the same rule."""

IMPURE = frozenset(
    {
        "asyncio",
        "concurrent",
        "ctypes",
        "datetime",
        "fcntl",
        "io",
        "logging",
        "mmap",
        "multiprocessing",
        "os",
        "queue",
        "random",
        "resource",
        "secrets",
        "select",
        "selectors",
        "shutil",
        "signal",
        "socket",
        "sqlite3",
        "subprocess",
        "tempfile",
        "threading",
        "time",
        "urllib.request",
        "uuid",
        "zmq",
    }
)
"""Where clock, chance and I/O come from."""

IMPURE_CALLS = ("open(", "print(", "input(")

pure_modules = sorted(name for name in modules() if starts_with(name, *PURE, *TYPES_ONLY))


def test_each_name_in_the_lists_is_a_module() -> None:
    assert [name for name in (*PURE, *TYPES_ONLY) if name not in modules()] == []


@pytest.mark.parametrize("module", pure_modules)
def test_a_pure_module_has_no_clock_no_chance_and_no_io(module: str) -> None:
    path = modules()[module]
    assert [(i.line, i.name) for i in imports_of(path) if starts_with(i.name, *IMPURE)] == []
    text = path.read_text(encoding="utf-8")
    assert [call for call in IMPURE_CALLS if f" {call}" in text] == []


@pytest.mark.parametrize("module", pure_modules)
def test_a_pure_module_imports_of_ours_only_pure_ones(module: str) -> None:
    faces = {name for name, path in modules().items() if path.name == "__init__.py" and path.parent.parent == ROOT}
    wrong = [i.name for i in ours(module) if not starts_with(i.name, *PURE, *TYPES_ONLY) and i.name not in faces]
    assert wrong == []
