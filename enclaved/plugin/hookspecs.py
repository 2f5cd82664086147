"""The hooks a plugin may implement, and the light half of backends and sources.

The light half is imported by the daemon: pure Python, no native library, no parsing of model files. The heavy half is
named by strings (`"package.module:attribute"`) and imported only in the child process that needs it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pluggy

from enclaved.plugin.engine import MemoryUse, Placement
from enclaved.plugin.model import ModelEntry, ModelHeader

API_VERSION = 1
"""A plugin module states the version it was written for as `ENCLAVE_API_VERSION`; another one is not loaded."""

PROJECT = "enclaved"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Backend(ABC):
    """The light half of a backend: what the daemon must know to choose it and to predict its memory."""

    name: str
    engine: str
    """`module:class` of the `Engine`, imported in the worker only."""
    header_reader: str | None = None
    """`module:function` `(file: BinaryIO, size_bytes: int) -> ModelHeader`, imported in the inspector only.
    It raises `HeaderError` for whatever is no model of this backend."""
    vocabulary: str | None = None
    """`module:function` `(files: Sequence[OpenFile]) -> Vocabulary`, imported in an inspector only: opens a model's
    vocabulary without its weights. It raises `EngineError` for what it cannot read, and closes no descriptor."""
    preload: tuple[str, ...] = ()
    """Modules that a spare worker imports while it waits for a model."""
    process_bytes: int = 16 * 2**20
    """What a worker with the preloaded modules holds before it has a model."""
    packages: tuple[str, ...] = ()
    """Top-level packages of this plugin, so that the sandbox can grant reading them where they are not installed in
    the interpreter's own folders."""

    @abstractmethod
    def recognises(self, file_name: str) -> bool:
        """Whether a file of this name may be a model of this backend. Looks at the name only."""

    @abstractmethod
    def refuse(self, header: ModelHeader) -> str | None:
        """The reason, for a person, why this model cannot be run; None when it can."""

    @abstractmethod
    def estimate(self, header: ModelHeader, placement: Placement) -> MemoryUse:
        """Bytes that an instance of this model will need."""


@dataclass(frozen=True)
class SourceContext:
    """What a source gets from the daemon."""

    data_folder: Path
    """A folder of its own, made when the source first needs it."""
    settings: Any = None
    """An instance of the dataclass that the plugin named by `enclave_settings`, filled from the configuration."""
    folders: tuple[Path, ...] = ()
    """Absolute paths of the folders that the user added, for a source that `takes_folders`; none of them need exist."""


@dataclass(frozen=True)
class WatchedFolder:
    """A folder whose changes may change what a source lists."""

    path: Path
    deep: bool = True
    """Whether all folders below it count as well."""


class Source(ABC):
    """The light half of a source: which models it offers and which references are its own."""

    name: str
    takes_folders: bool = False
    """Whether it looks for models in `SourceContext.folders`."""

    @abstractmethod
    def models(self, context: SourceContext) -> Iterable[ModelEntry]:
        """Every model that is on this machine now. Runs in a thread: it may touch the disk."""

    def watched(self, context: SourceContext) -> Sequence[WatchedFolder] | None:
        """The folders that decide what `models` lists, which must then be all that this source's references can mean;
        None when there is more to it. Asked before and after each `models`, in the same thread.

        The daemon watches these folders, calls `models` again when something changes there, and knows the listed names
        (and `ModelEntry.also`) without asking `resolve`. A model is listed for clients when nobody writes its files
        any more.
        """
        return None

    @abstractmethod
    def resolve(self, reference: str, context: SourceContext) -> ModelEntry | None:
        """The model a reference means, when the reference is of this source; None when it is not. Runs in a thread.

        Raises LookupError, with a sentence for a person, when the reference is of this source and names nothing, and
        OSError when the disk is in the way.
        """


@dataclass(frozen=True)
class PluginSettings:
    """The settings a plugin takes from the configuration's `[plugins.NAME]` table."""

    name: str
    settings: type
    """A frozen dataclass; each field has a default and, as its metadata's `help`, a sentence for a person."""


class Hooks:
    """Each hook returns a list, so that one plugin may bring several things."""

    @hookspec
    def enclave_backends(self) -> list[Backend]:
        """Called once at the daemon's start: the backends this plugin brings."""
        raise NotImplementedError

    @hookspec
    def enclave_sources(self) -> list[Source]:
        """Called once at the daemon's start: the sources this plugin brings, in order of preference."""
        raise NotImplementedError

    @hookspec
    def enclave_settings(self) -> list[PluginSettings]:
        """Called once at the daemon's start: the settings this plugin takes from the configuration."""
        raise NotImplementedError
