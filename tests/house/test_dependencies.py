"""Who may import whom: the rule that keeps the processes, the decisions and the plugins apart.

`core`, `link` and `sandbox` stand alone. `daemon` and `worker` build on them and never see each other. Plugins see
`enclaved.plugin`, clients see `enclave`.
"""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from tests.house.imports import CLIENTS, PLUGINS, ROOT, imports_of, is_import_call, modules, ours, starts_with

PROCESS_BASE = (
    "enclaved.core",
    "enclaved.link",
    "enclaved.sandbox",
    "enclaved.plugin",
    "enclave.protocol",
    "enclave.paths",
    "enclave.sockets",
)
"""What the code of a process builds on."""

ALLOWED = {
    "enclaved.core": ("enclaved.core",),
    "enclaved.link": ("enclaved.link",),
    "enclaved.sandbox": ("enclaved.sandbox",),
    "enclaved.plugin": ("enclaved.plugin",),
    "enclaved.testing": ("enclaved.testing", "enclaved.plugin"),
    "enclaved.daemon": ("enclaved.daemon", *PROCESS_BASE),
    "enclaved.worker": ("enclaved.worker", *PROCESS_BASE),
    "enclaved.fetcher": ("enclaved.fetcher", *PROCESS_BASE),
    "enclaved.simulate": ("enclaved.simulate", "enclaved.core"),
    "enclaved.__main__": ("enclaved.daemon.main",),
    "enclave.protocol": ("enclave.protocol",),
    "enclave.paths": (),
    "enclave.sockets": (),
    "enclave": ("enclave",),
    **{plugin: (plugin, "enclaved.plugin") for plugin in PLUGINS},
    **{client: (client, "enclave") for client in CLIENTS},
}
"""What each part may import of the project. The longest name that fits a module is its part."""

FOLDERS = tuple(sorted(path.parent.name for path in (ROOT / "enclaved/daemon").glob("*/__init__.py")))
"""The folders of the daemon, each with a face: its `__init__`."""

COMPUTED_IMPORTS = {
    "enclave": "names of the client are imported at their first use",
    "enclave_cli.lazy": "a command is imported when it is called",
    "enclaved.plugin.manager": "the light halves, found by entry point",
    "enclaved.worker.heavy": "the heavy halves, named by the light ones",
    "enclaved.worker.main": "what a spare worker imports ahead",
}
"""The only modules that import by a computed name, and why: everything else can be read off the source."""


def part_of(module: str) -> str | None:
    return max((part for part in ALLOWED if starts_with(module, part)), key=len, default=None)


@pytest.mark.parametrize("module", sorted(modules()))
def test_a_module_imports_only_what_its_part_may(module: str) -> None:
    part = part_of(module)
    if part is None:
        assert module == "enclaved", f"{module} belongs to no part of the rule"
        assert ours(module) == ()
        return
    wrong = [
        f"line {found.line}: {found.name}"
        for found in ours(module)
        # The version is the only thing that the package itself holds.
        if not starts_with(found.name, *ALLOWED[part]) and found.name != "enclaved"
    ]
    assert wrong == []


def test_the_rule_catches_an_import_inside_a_function_and_for_types() -> None:
    source = "def f():\n    import zmq\nif TYPE_CHECKING:\n    import numpy\nelse:\n    import json\n"
    path = ROOT / "enclaved/core/step.py"
    names = {found.name for found in imports_of(path)}
    assert {"math", "enclaved.core.cores", "enclaved.core.state"} <= names
    from tests.house.imports import _walk  # pyright: ignore[reportPrivateUsage]

    found = {(each.name, each.at_module_level) for each in _walk(ast.parse(source), True)}
    assert found == {("zmq", False), ("numpy", False), ("json", True)}


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_of_the_daemon_imports_no_other(folder: str) -> None:
    others = [f"enclaved.daemon.{other}" for other in FOLDERS if other != folder]
    own = [name for name in modules() if starts_with(name, f"enclaved.daemon.{folder}")]
    assert [(name, found.name) for name in own for found in ours(name) if starts_with(found.name, *others)] == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_a_folder_of_the_daemon_shares_with_others_knows_no_folder(folder: str) -> None:
    faces = [f"enclaved.daemon.{other}" for other in FOLDERS]
    shared = {
        found.name
        for name in modules()
        if starts_with(name, f"enclaved.daemon.{folder}")
        for found in ours(name)
        if starts_with(found.name, "enclaved.daemon") and not starts_with(found.name, *faces)
    }
    assert [name for name in shared if any(starts_with(found.name, *faces) for found in ours(name))] == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_of_the_daemon_is_imported_through_its_face(folder: str) -> None:
    face = f"enclaved.daemon.{folder}"
    assert [
        (name, found.name)
        for name in modules()
        if not starts_with(name, face)
        for found in ours(name)
        if starts_with(found.name, face) and found.name != face
    ] == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_face_exports_what_it_imports(folder: str) -> None:
    face = modules()[f"enclaved.daemon.{folder}"]
    tree = ast.parse(face.read_text(encoding="utf-8"))
    imported = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module != "__future__"
        for alias in node.names
    }
    exported = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    assert set(exported) == imported


@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_plugins_tests_see_only_what_a_stranger_could(plugin: str) -> None:
    """A plugin lives outside this repository as well as in it."""
    folder = ROOT / "plugins" / plugin.removeprefix("enclave_") / "tests"
    wrong = [
        (path.name, found.name)
        for path in sorted(folder.rglob("*.py"))
        for found in imports_of(path)
        if starts_with(found.name, "enclave", "enclave_cli", "enclaved", *PLUGINS)
        and not starts_with(found.name, plugin, "enclaved.plugin", "enclaved.testing")
    ]
    assert wrong == []


def test_the_protocol_needs_neither_sockets_nor_the_client() -> None:
    names = [name for name in modules() if starts_with(name, "enclave.protocol")]
    assert names
    assert [(name, i.name) for name in names for i in imports_of(modules()[name]) if starts_with(i.name, "zmq")] == []
    code = (
        "import sys, enclave.protocol, enclave.paths; "
        "print(sorted(n for n in sys.modules if n.startswith('enclave.') or n == 'zmq'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = ast.literal_eval(done.stdout)
    assert [name for name in loaded if not starts_with(name, "enclave.protocol", "enclave.paths")] == []


def test_a_childs_first_module_loads_nothing_of_others() -> None:
    """It runs before the walls stand. Run with only the folders of the project and the standard library to be found."""
    code = (
        "import sys; before = set(sys.modules); sys.path[:] = [p for p in sys.path if 'site-packages' not in p]; "
        f"sys.path.append({str(ROOT)!r}); import enclaved.worker.main; print(sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    loaded = ast.literal_eval(done.stdout)
    assert "enclaved.worker.main" in loaded
    foreign = [name for name in loaded if name.partition(".")[0] not in {*sys.stdlib_module_names, "enclaved"}]
    assert foreign == []
    assert [
        name
        for name in loaded
        if starts_with(name, "enclaved")
        and not starts_with(name, "enclaved.sandbox")
        and name not in ("enclaved", "enclaved.worker", "enclaved.worker.main")
    ] == []


def test_nothing_else_imports_by_a_computed_name() -> None:
    found = set[str]()
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and is_import_call(node) and not isinstance(node.args[0], ast.Constant):
                found.add(name)
    assert found == set(COMPUTED_IMPORTS)


def test_no_module_is_dead() -> None:
    """Each is imported by another, or is where a process begins, or is for authors of plugins and tests to import."""
    begins = {
        "enclaved.__main__",
        "enclaved.daemon.main",
        "enclaved.worker.main",
        "enclave_cli.entry",
        "enclaved.core.invariants",
        "enclaved.testing",
        *(f"{plugin}.plugin" for plugin in PLUGINS),
    }
    texts = "\n".join(path.read_text(encoding="utf-8") for path in modules().values())
    imported = {found.name for name in modules() for found in ours(name)}
    named = {name for name in modules() if f'"{name}:' in texts or f'"{name}"' in texts}
    commands = {name for name in modules() if starts_with(name, "enclave_cli.commands")}
    packages = {name for name, path in modules().items() if path.name == "__init__.py"}
    assert set(modules()) - imported - named - commands - packages - begins == set()
