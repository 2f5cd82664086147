"""The modules that decide: no clock, no chance, no I/O in them, nor in anything of ours that they import."""

from __future__ import annotations

import ast

import pytest

from tests.house.imports import ROOT, imports_of, modules, ours, starts_with

PURE = (
    "enclaved.core",
    "enclaved.link",
    "enclaved.sandbox.tables",
    "enclaved.sandbox.filter",
    "enclaved.worker.asked",
    "enclaved.worker.overflow",
    "enclaved.worker.pace",
    "enclaved.worker.plan",
    "enclaved.worker.prefixes",
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
    "enclave_cli.bridging",
    "enclave_cli.completing",
    "enclave_cli.json_lines",
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
        "builtins",
        "concurrent",
        "ctypes",
        "datetime",
        "fcntl",
        "fileinput",
        "glob",
        "importlib",
        "io",
        "logging",
        "mmap",
        "multiprocessing",
        "os",
        "pathlib",
        "platform",
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
        "sys",
        "tempfile",
        "threading",
        "time",
        "urllib.request",
        "uuid",
        "zmq",
    }
)
"""Where clock, chance and I/O come from."""

HARMLESS = {
    "enclaved.plugin.hookspecs": frozenset({"pathlib"}),
    "enclave.results": frozenset({"sys"}),
    "enclave.protocol.records": frozenset({"threading"}),
}
"""Where one of these is used for a type, for the machine's byte order, or so that a class is made once."""

IMPURE_CALLS = frozenset({"open", "print", "input", "eval", "exec", "__import__", "breakpoint"})

pure_modules = sorted(name for name in modules() if starts_with(name, *PURE, *TYPES_ONLY))


def test_each_name_in_the_lists_is_a_module() -> None:
    assert [name for name in (*PURE, *TYPES_ONLY) if name not in modules()] == []


@pytest.mark.parametrize("module", pure_modules)
def test_a_pure_module_has_no_clock_no_chance_and_no_io(module: str) -> None:
    path = modules()[module]
    impure = IMPURE - HARMLESS.get(module, frozenset())
    assert [(i.line, i.name) for i in imports_of(path) if starts_with(i.name, *impure)] == []
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]
    assert [name for name in names if name in IMPURE_CALLS] == []


@pytest.mark.parametrize("module", pure_modules)
def test_a_pure_module_imports_of_ours_only_pure_ones(module: str) -> None:
    faces = {name for name, path in modules().items() if path.name == "__init__.py" and path.parent.parent == ROOT}
    wrong = [i.name for i in ours(module) if not starts_with(i.name, *PURE, *TYPES_ONLY) and i.name not in faces]
    assert wrong == []
