"""What the project's modules import, read from their source; the rules about it are in the tests beside this file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PACKAGES = {
    "enclaved": ROOT / "enclaved",
    "enclave": ROOT / "clients/python/enclave",
    "enclave_cli": ROOT / "clients/cli/enclave_cli",
    **{f"enclave_{folder.parent.name}": folder for folder in sorted(ROOT.glob("plugins/*/enclave_*"))},
}
"""Each package of the project by its import name."""

PLUGINS = tuple(sorted(name for name, folder in PACKAGES.items() if folder.parent.parent == ROOT / "plugins"))
CLIENTS = ("enclave_cli",)


@dataclass(frozen=True)
class Import:
    """One imported name, as a module's dotted name where it is one: `enclaved.core.step`, `asyncio`."""

    name: str
    line: int
    at_module_level: bool
    """Whether importing the module runs it: not inside a function, and not for the type checker alone."""


@cache
def modules() -> dict[str, Path]:
    """The file of every module in the project's packages, by its dotted name."""
    found: dict[str, Path] = {}
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join([package, *(part for part in parts if part != "__init__")])] = path
    return found


@cache
def imports_of(path: Path) -> tuple[Import, ...]:
    """Everything that a file imports, inside functions and for the type checker too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return tuple(_walk(tree, True))


def ours(module: str) -> tuple[Import, ...]:
    """What a module of the project imports of the project."""
    return tuple(found for found in imports_of(modules()[module]) if found.name.partition(".")[0] in PACKAGES)


def _walk(node: ast.AST, at_module_level: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, at_module_level) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"a relative import in line {child.lineno}"
            assert child.module is not None
            for alias in child.names:
                whole = f"{child.module}.{alias.name}"
                yield Import(whole if whole in modules() else child.module, child.lineno, at_module_level)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for part in child.body:
                yield from _walk(ast.Module([part], []), False)
            for part in child.orelse:
                yield from _walk(ast.Module([part], []), at_module_level)
        elif isinstance(child, ast.Call) and is_import_call(child) and isinstance(child.args[0], ast.Constant):
            yield Import(str(child.args[0].value), child.lineno, at_module_level)
        else:
            inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from _walk(child, at_module_level and not inside)


def is_import_call(call: ast.Call) -> bool:
    """Whether a call imports a module by a name that is a value."""
    return ast.unparse(call.func).rpartition(".")[2] in ("import_module", "__import__", "spec_from_file_location")


def starts_with(name: str, *packages: str) -> bool:
    """Whether a module is one of these packages, or lies in one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)
