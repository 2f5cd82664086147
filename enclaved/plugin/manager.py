"""Loads the plugins, once, at the daemon's start (and for `enclave plugins`).

Each plugin is imported, verified and asked for what it brings, apart from all others: whatever goes wrong with one is a
line in the result that says what to do, and the rest goes on. Nothing here imports a plugin's heavy half.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType, ModuleType
from typing import Any, Literal, TypeVar, cast

import pluggy

from enclaved.plugin.hookspecs import API_VERSION, PROJECT, Backend, Hooks, PluginSettings, Source
from enclaved.plugin.installed import InstalledPlugin, installed_plugins

ONLY_VARIABLE = "ENCLAVE_PLUGINS"
"""Environment variable with the names of the only plugins to load, `a,b`: a bisect by hand. Empty is as if unset."""

ERROR_CHARACTERS_MAX = 200
"""A problem is one line to read, whatever text an exception brought along."""

PluginKind = Literal["backend", "source"]
Item = TypeVar("Item")


@dataclass(frozen=True)
class PluginLine:
    """What a person should know about one plugin, as `enclave plugins` prints it."""

    name: str
    distribution: str | None
    version: str | None
    kinds: tuple[PluginKind, ...]
    """What it brings; empty when it failed."""
    state: Literal["ready", "failed"]
    problem: str | None = None
    """Why it failed and what to do about it, in one line."""


@dataclass(frozen=True)
class Plugins:
    """Everything that the loaded plugins brought, and a line for each plugin, failed ones included."""

    backends: Mapping[str, Backend] = field(default_factory=dict[str, Backend])
    """By name."""
    sources: tuple[Source, ...] = ()
    """In the order of the plugins' names; of one plugin, in its own order."""
    settings: Mapping[str, PluginSettings] = field(default_factory=dict[str, PluginSettings])
    """By the name of their table in the configuration."""
    lines: tuple[PluginLine, ...] = ()


def load_plugins(
    only: Sequence[str] | None = None,
    entry_points: Callable[[], Sequence[InstalledPlugin]] = installed_plugins,
    environment: Mapping[str, str] = os.environ,
) -> Plugins:
    """Loads the installed plugins, or the ones named in `only`, else in the environment variable `ENCLAVE_PLUGINS`.

    A plugin that is left out is not imported and has no line; a name in `only` that is not installed has one. Raises
    nothing that a plugin raised, but for KeyboardInterrupt.
    """
    if only is None:
        only = [name for part in environment.get(ONLY_VARIABLE, "").split(",") if (name := part.strip())] or None
    installed = sorted(entry_points(), key=lambda plugin: plugin.name)
    backends: dict[str, Backend] = {}
    sources: dict[str, Source] = {}
    settings: dict[str, PluginSettings] = {}
    lines: list[PluginLine] = []
    owners: dict[str, str] = {}
    for plugin in installed:
        if only is not None and plugin.name not in only:
            continue
        try:
            if plugin.name in owners:
                raise _UnfitError(f"has the name of the plugin of {owners[plugin.name]}; uninstall one of them")
            owners[plugin.name] = plugin.distribution or plugin.module
            brought = _load(plugin)
            _refuse_double("backend", brought.backends, backends)
            _refuse_double("source", brought.sources, sources)
            _refuse_double("settings table", brought.settings, settings)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 -- a plugin may raise whatever it likes, SystemExit too
            lines.append(_line(plugin, problem=_sentence(error, plugin)))
        else:
            backends.update({backend.name: backend for backend in brought.backends})
            sources.update({source.name: source for source in brought.sources})
            settings.update({table.name: table for table in brought.settings})
            lines.append(_line(plugin, kinds=brought.kinds))
    known = ", ".join(plugin.name for plugin in installed) or "none"
    lines += [
        _line(InstalledPlugin(name, ""), problem=f"is not installed; installed plugins: {known}")
        for name in dict.fromkeys(only or ())
        if name not in owners
    ]
    return Plugins(
        backends=MappingProxyType(backends),
        sources=tuple(sources.values()),
        settings=MappingProxyType(settings),
        lines=tuple(lines),
    )


class _UnfitError(Exception):
    """A plugin breaks a rule of this module. The text is the line's problem as it stands."""


@dataclass(frozen=True)
class _Brought:
    backends: Sequence[Backend]
    sources: Sequence[Source]
    settings: Sequence[PluginSettings]

    @property
    def kinds(self) -> tuple[PluginKind, ...]:
        return (*(("backend",) if self.backends else ()), *(("source",) if self.sources else ()))


def _load(plugin: InstalledPlugin) -> _Brought:
    """Imports one plugin, verifies its hooks and calls them. Raises _UnfitError, and whatever the plugin raises."""
    module = importlib.import_module(plugin.module)
    _refuse_api_version(module)
    # One manager a plugin: pluggy keeps what it registered of a plugin whose second hook turns out to be wrong.
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(Hooks)
    manager.register(module, plugin.name)
    manager.check_pending()
    if not manager.get_hookcallers(module):
        hooks = ", ".join(name for name in vars(Hooks) if name.startswith("enclave_"))
        raise _UnfitError(f"has no hook; implement one of {hooks} in {plugin.module} and mark it with @hookimpl")
    backends = _items(manager, "enclave_backends", Backend)
    sources = _items(manager, "enclave_sources", Source)
    settings = _items(manager, "enclave_settings", PluginSettings)
    for backend in backends:
        _refuse_backend(backend)
    for source in sources:
        _refuse_name("source", source)
    for table in settings:
        _refuse_settings(table)
    return _Brought(backends, sources, settings)


def _refuse_api_version(module: ModuleType) -> None:
    version: object = getattr(module, "ENCLAVE_API_VERSION", None)
    if version is None:
        raise _UnfitError(f"states no ENCLAVE_API_VERSION; add `ENCLAVE_API_VERSION = {API_VERSION}` to its module")
    if type(version) is not int or version != API_VERSION:
        newer = type(version) is int and version > API_VERSION
        todo = "update Enclave" if newer else "update the plugin"
        raise _UnfitError(f"is written for plugin API {version!r}, this Enclave has {API_VERSION}; {todo}")


def _items(manager: pluggy.PluginManager, hook: str, kind: type[Item]) -> list[Item]:
    """What the plugin's implementation of a hook returned: a list of `kind`."""
    items: list[Item] = []
    results: list[object] = getattr(manager.hook, hook)()
    for result in results:
        if not isinstance(result, (list, tuple)):
            raise _UnfitError(f"{hook} returned a {type(result).__name__}; it must return a list of {kind.__name__}")
        for item in cast("Sequence[object]", result):
            if not isinstance(item, kind):
                what = "the class itself" if item is kind or isinstance(item, type) else f"a {type(item).__name__}"
                raise _UnfitError(f"{hook} returned {what} in its list; each item must be a {kind.__name__} object")
            items.append(item)
    return items


_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_ATTRIBUTE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def _refuse_name(what: str, item: object) -> None:
    name: object = getattr(item, "name", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise _UnfitError(
            f"{what} {type(item).__name__} has the name {name!r}; "
            "a name is a small letter, then at most 31 small letters, digits and _"
        )


def _refuse_backend(backend: Backend) -> None:
    _refuse_name("backend", backend)
    for attribute in ("engine", "header_reader"):
        value: object = getattr(backend, attribute, "")
        if value is None and attribute == "header_reader":
            continue
        if not isinstance(value, str) or not _ATTRIBUTE.fullmatch(value):
            raise _UnfitError(
                f"backend {backend.name}: {attribute} is {value!r}; it must be `package.module:attribute`"
            )
    for attribute in ("preload", "packages"):
        values: object = getattr(backend, attribute)
        if not isinstance(values, tuple) or not all(isinstance(value, str) for value in cast("tuple[Any]", values)):
            raise _UnfitError(f"backend {backend.name}: {attribute} is {values!r}; it must be a tuple of names")


def _refuse_settings(table: PluginSettings) -> None:
    _refuse_name("settings table", table)
    kind: Any = table.settings
    if not isinstance(kind, type) or not dataclasses.is_dataclass(kind):
        raise _UnfitError(f"settings {table.name}: {kind!r} is no dataclass; hand over the frozen dataclass itself")
    if not cast("Any", kind).__dataclass_params__.frozen:
        raise _UnfitError(f"settings {table.name}: {kind.__name__} is not frozen; write @dataclass(frozen=True)")
    for setting in dataclasses.fields(kind):
        if setting.default is dataclasses.MISSING and setting.default_factory is dataclasses.MISSING:
            raise _UnfitError(f"settings {table.name}: {setting.name} has no default; give it one")
        if not isinstance(setting.metadata.get("help"), str):
            raise _UnfitError(f'settings {table.name}: {setting.name} has no metadata={{"help": "a sentence"}}; add it')


def _refuse_double(what: str, brought: Sequence[Any], present: Mapping[str, object]) -> None:
    names = set(present)
    for item in brought:
        if item.name in names:
            raise _UnfitError(f"brings a second {what} named {item.name}; rename it or uninstall one of the plugins")
        names.add(item.name)


def _line(plugin: InstalledPlugin, *, kinds: tuple[PluginKind, ...] = (), problem: str | None = None) -> PluginLine:
    return PluginLine(
        name=plugin.name,
        distribution=plugin.distribution,
        version=plugin.version,
        kinds=kinds,
        state="ready" if problem is None else "failed",
        problem=problem,
    )


def _sentence(error: BaseException, plugin: InstalledPlugin) -> str:
    """One line for a person: what went wrong and what to do."""
    text = " ".join(str(error).split())
    if isinstance(error, _UnfitError):
        return text
    if len(text) > ERROR_CHARACTERS_MAX:
        text = text[: ERROR_CHARACTERS_MAX - 1] + "…"
    again = f"update or reinstall {plugin.distribution or 'it'}"
    if isinstance(error, pluggy.PluginValidationError):
        return f"has a hook that this Enclave does not know as such ({text}); {again}"
    if isinstance(error, ImportError):
        return f"cannot be imported ({type(error).__name__}: {text}); {again}"
    return f"failed at loading ({type(error).__name__}: {text}); {again}, or report it to its author"
