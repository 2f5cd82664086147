from __future__ import annotations

import importlib
import itertools
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

from enclaved.plugin.installed import InstalledPlugin
from enclaved.plugin.manager import ERROR_CHARACTERS_MAX, PluginLine, Plugins, load_plugins

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Install = Callable[[str, str], InstalledPlugin]

numbers = itertools.count()

HEAD = """
from __future__ import annotations
from dataclasses import dataclass, field
from enclaved.plugin.engine import MemoryUse
from enclaved.plugin.hookspecs import Backend, PluginSettings, Source, hookimpl
ENCLAVE_API_VERSION = 1

class ABackend(Backend):
    engine = "a.engine:Engine"
    def __init__(self, name="a", **attributes):
        self.name = name
        vars(self).update(attributes)
    def recognises(self, file_name): return False
    def refuse(self, header): return None
    def estimate(self, header, placement): return MemoryUse()

class ASource(Source):
    def __init__(self, name="a"): self.name = name
    def models(self, context): return []
    def resolve(self, reference, context): return None
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Writes a plugin module that can be imported, under a module name of its own."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    def write(name: str, source: str) -> InstalledPlugin:
        module = f"plugin_under_test_{next(numbers)}"
        tmp_path.joinpath(f"{module}.py").write_text(textwrap.dedent(source), encoding="utf-8")
        importlib.invalidate_caches()
        return InstalledPlugin(name, module, f"dist-{name}", "1.0")

    return write


def load(
    *plugins: InstalledPlugin, only: list[str] | None = None, environment: dict[str, str] | None = None
) -> Plugins:
    return load_plugins(only, lambda: plugins, environment or {})


def backend_plugin(*names: str) -> str:
    return HEAD + f"\n@hookimpl\ndef enclave_backends(): return [ABackend(name) for name in {names!r}]\n"


def problem_of(plugin: InstalledPlugin) -> str:
    """The problem of a plugin that must fail, loaded before one that must not mind."""
    plugins = load(plugin)
    (line,) = plugins.lines
    assert (line.name, line.state, line.kinds) == (plugin.name, "failed", ())
    assert plugins == Plugins(lines=(line,))
    assert line.problem is not None
    assert "\n" not in line.problem
    return line.problem


def test_a_plugin_brings_backends_sources_and_settings(install: Install) -> None:
    plugin = install(
        "full",
        HEAD
        + """
@dataclass(frozen=True)
class Settings:
    folders: tuple[str, ...] = field(default=(), metadata={"help": "Where."})
@hookimpl
def enclave_backends(): return [ABackend("one"), ABackend("two")]
@hookimpl
def enclave_sources(): return (ASource("z"), ASource("one"))
@hookimpl
def enclave_settings(): return [PluginSettings("full", Settings)]
""",
    )
    plugins = load(plugin)
    assert list(plugins.backends) == ["one", "two"]
    assert [source.name for source in plugins.sources] == ["z", "one"]
    assert plugins.settings["full"].settings.__name__ == "Settings"
    assert plugins.lines == (PluginLine("full", "dist-full", "1.0", ("backend", "source"), "ready"),)


def test_sources_come_in_the_order_of_the_plugins_names(install: Install) -> None:
    def source_plugin(name: str) -> InstalledPlugin:
        return install(name, HEAD + f"\n@hookimpl\ndef enclave_sources(): return [ASource('of_{name}')]\n")

    plugins = load(source_plugin("c"), source_plugin("a"), source_plugin("b"))
    assert [source.name for source in plugins.sources] == ["of_a", "of_b", "of_c"]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("raise RuntimeError('first\\nsecond')", "RuntimeError: first second"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("class Odd(BaseException): pass\nraise Odd('odd')", "Odd: odd"),
        ("import no_such_module_anywhere", "cannot be imported"),
        ("def broken(:\n", "SyntaxError"),
        ("ENCLAVE_API_VERSION = 1", "implement one of enclave_backends, enclave_sources, enclave_settings"),
        (backend_plugin("a").replace("VERSION = 1", "VERSION_ = 1"), "add `ENCLAVE_API_VERSION = 1`"),
        (backend_plugin("a").replace("VERSION = 1", "VERSION = 2"), "update Enclave"),
        (backend_plugin("a").replace("VERSION = 1", "VERSION = 0"), "update the plugin"),
        (backend_plugin("a").replace("VERSION = 1", "VERSION = True"), "update the plugin"),
        (HEAD + "@hookimpl\ndef enclave_backends(secret): return []", "secret"),
        (HEAD + "@hookimpl\ndef enclave_backend(): return []", "enclave_backend"),
        (HEAD + "@hookimpl\ndef enclave_backends(): raise SystemExit('no')", "SystemExit: no"),
        (HEAD + "@hookimpl\ndef enclave_backends(): return ABackend()", "must return a list of Backend"),
        (HEAD + "@hookimpl\ndef enclave_backends(): return [ABackend]", "the class itself"),
        (HEAD + "@hookimpl\ndef enclave_backends(): return [ASource()]", "a ASource in its list"),
        (HEAD + "@hookimpl\ndef enclave_sources(): return [None]", "must be a Source object"),
        (backend_plugin("Big"), "has the name 'Big'"),
        (backend_plugin(""), "has the name ''"),
        (backend_plugin("a", "a"), "a second backend named a"),
        (HEAD + "@hookimpl\ndef enclave_backends(): return [ABackend(engine='a.engine')]", "package.module:attribute"),
        (HEAD + "@hookimpl\ndef enclave_backends(): return [ABackend(header_reader=open)]", "header_reader"),
        (HEAD + "@hookimpl\ndef enclave_backends(): return [ABackend(preload='numpy')]", "tuple of names"),
        (HEAD + "@hookimpl\ndef enclave_settings(): return [PluginSettings('a', int)]", "is no dataclass"),
        (
            HEAD + "@dataclass\nclass S: pass\n@hookimpl\ndef enclave_settings(): return [PluginSettings('a', S)]",
            "not frozen",
        ),
        (
            HEAD + "@dataclass(frozen=True)\nclass S:\n  x: int\n"
            "@hookimpl\ndef enclave_settings(): return [PluginSettings('a', S)]",
            "x has no default",
        ),
        (
            HEAD + "@dataclass(frozen=True)\nclass S:\n  x: int = 1\n"
            "@hookimpl\ndef enclave_settings(): return [PluginSettings('a', S)]",
            "x has no metadata",
        ),
    ],
)
def test_a_plugin_that_breaks_a_rule_is_a_line_that_says_which(install: Install, source: str, words: str) -> None:
    assert words in problem_of(install("bad", source))


def test_a_long_error_is_cut_but_the_advice_stays(install: Install) -> None:
    problem = problem_of(install("bad", "raise ValueError('x' * 10_000)"))
    assert len(problem) < ERROR_CHARACTERS_MAX + 150
    assert "reinstall dist-bad" in problem


def test_a_failed_plugin_does_not_touch_the_others(install: Install) -> None:
    half_wrong = backend_plugin("taken") + "\n@hookimpl\ndef enclave_sources(unknown): return []\n"
    plugins = load(install("a_bad", half_wrong), install("b_good", backend_plugin("taken")))
    assert [line.state for line in plugins.lines] == ["failed", "ready"]
    assert list(plugins.backends) == ["taken"]


def test_the_second_plugin_with_a_backend_of_the_same_name_fails_whole(install: Install) -> None:
    plugins = load(install("a", backend_plugin("x")), install("b", backend_plugin("y", "x")))
    assert [line.state for line in plugins.lines] == ["ready", "failed"]
    assert "second backend named x" in (plugins.lines[1].problem or "")
    assert list(plugins.backends) == ["x"]


def test_two_plugins_of_one_name_are_told_apart_by_their_distribution(install: Install) -> None:
    plugins = load(install("a", backend_plugin("x")), install("a", backend_plugin("y")))
    assert [line.state for line in plugins.lines] == ["ready", "failed"]
    assert "the plugin of dist-a" in (plugins.lines[1].problem or "")


def test_an_interrupt_from_the_keyboard_is_not_the_plugins_matter(install: Install) -> None:
    with pytest.raises(KeyboardInterrupt):
        load(install("a", "raise KeyboardInterrupt"))


def test_only_names_the_plugins_to_load_and_the_rest_is_not_imported(install: Install) -> None:
    wanted, other = install("wanted", backend_plugin("x")), install("other", "raise RuntimeError")
    assert [line.name for line in load(wanted, other, only=["wanted"]).lines] == ["wanted"]
    plugins = load(wanted, other, environment={"ENCLAVE_PLUGINS": " wanted, missing,"})
    assert [(line.name, line.state) for line in plugins.lines] == [("wanted", "ready"), ("missing", "failed")]
    assert plugins.lines[1].problem == "is not installed; installed plugins: other, wanted"


def test_an_empty_variable_is_as_if_unset_and_only_goes_before_it(install: Install) -> None:
    plugins = install("a", backend_plugin("x")), install("b", backend_plugin("y"))
    assert len(load(*plugins, environment={"ENCLAVE_PLUGINS": " "}).lines) == 2
    assert [line.name for line in load(*plugins, only=["b"], environment={"ENCLAVE_PLUGINS": "a"}).lines] == ["b"]
    assert load(*plugins, only=[]).lines == ()


def test_an_optional_part_may_be_missing_without_a_problem(install: Install) -> None:
    plugin = install("empty", HEAD + "@hookimpl\ndef enclave_backends(): return []\n")
    assert load(plugin).lines == (PluginLine("empty", "dist-empty", "1.0", (), "ready"),)
