"""What a reference means, by asking in this order: aliases, paths, then each source.

Sources touch the disk, so they are asked in a thread.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from enclaved.daemon.refusal import RefusalError
from enclaved.plugin.hookspecs import Source, SourceContext
from enclaved.plugin.model import ModelEntry, ModelFile, ModelName

logger = logging.getLogger("enclaved.catalog")

ALIASES_DEEP = 8
"""An alias may name an alias; so many times, so that a circle ends."""

PATH_SOURCE = "path"
"""What `ModelEntry.source` says of a file that was named by its path."""


@dataclass(frozen=True)
class OwnNames:
    """The user's choices among the models, by their canonical names."""

    default: ModelName | None
    """The model of a client that names none."""
    aliases: Mapping[ModelName, tuple[str, ...]]


class Catalog:
    """The models of every source, and the user's own names for them."""

    def __init__(
        self, sources: Sequence[tuple[Source, SourceContext]], aliases: Mapping[str, str], default_model: str
    ) -> None:
        self._sources = sources
        self._aliases = aliases
        self._default_model = default_model

    async def resolve(self, reference: str | None) -> ModelEntry:
        """The model that a reference means; without one, the default model.

        Raises RefusalError: `model_not_found`, `bad_reference`, `model_unreadable`.
        """
        wanted = self._without_alias(reference or self._default_model)
        if looks_like_a_path(wanted):
            return _entry_of_path(wanted)
        failed: list[str] = []
        for source, context in self._sources:
            try:
                entry = await asyncio.to_thread(source.resolve, wanted, context)
            except LookupError as error:
                raise RefusalError("model_not_found", str(error.args[0] if error.args else error)) from error
            except OSError as error:
                raise RefusalError("model_unreadable", f"{wanted}: {error.strerror or error}") from error
            except Exception:
                logger.exception("the source %s failed", source.name)
                failed.append(source.name)
                continue
            if entry is not None:
                return entry
        if failed:
            raise RefusalError("model_not_found", f"there is no model {wanted!r}; {', '.join(failed)} failed to look")
        raise await self._not_found(wanted)

    async def models(self) -> list[ModelEntry]:
        """Every model of every source that is on this machine now. A source that fails offers none."""
        found: list[ModelEntry] = []
        for source, context in self._sources:
            try:
                found += await asyncio.to_thread(_models_of, source, context)
            except Exception:
                logger.exception("the source %s failed", source.name)
        return found

    async def own_names(self) -> OwnNames:
        """What the user calls the models. A name that leads nowhere is left out."""
        default: ModelName | None = None
        with suppress(RefusalError):
            default = (await self.resolve(None)).name
        aliases: dict[ModelName, list[str]] = {}
        for alias in self._aliases:
            with suppress(RefusalError):
                aliases.setdefault((await self.resolve(alias)).name, []).append(alias)
        return OwnNames(default, {name: tuple(found) for name, found in aliases.items()})

    def _without_alias(self, reference: str) -> str:
        for _ in range(ALIASES_DEEP):
            if self._aliases.get(reference, reference) == reference:
                return _expanded(reference) if reference.startswith("~") else reference
            reference = self._aliases[reference]
        raise RefusalError("bad_reference", f"the alias {reference} leads back to itself")

    async def _not_found(self, wanted: str) -> RefusalError:
        import difflib  # only when something is wrong: it would slow every start

        names = [entry.name for entry in await self.models()] + list(self._aliases)
        near = difflib.get_close_matches(wanted, names, n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        return RefusalError(
            "model_not_found", f"there is no model {wanted!r}", hint=f"{hint}`enclave list` shows the models."
        )


def _models_of(source: Source, context: SourceContext) -> list[ModelEntry]:
    return [entry for entry in source.models(context) if _can_be_told(entry)]


def _can_be_told(entry: ModelEntry) -> bool:
    """Whether its names are Unicode: a file's name need not be, and no client could name it."""
    try:
        for text in (entry.name, *(file.path for file in entry.files)):
            text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _expanded(path: str) -> str:
    try:
        return str(Path(path).expanduser())
    except RuntimeError as error:
        raise RefusalError("bad_reference", f"{path}: there is no such home folder") from error


def looks_like_a_path(reference: str) -> bool:
    """Whether a reference names a file by its path rather than a model by its name."""
    source, colon, _ = reference.partition(":")
    if colon and source.isidentifier():
        return False
    return "/" in reference or reference.startswith((".", "~"))


def _entry_of_path(path: str) -> ModelEntry:
    if not Path(path).is_absolute():
        raise RefusalError(
            "bad_reference",
            f"{path} is a relative path, and the daemon does not know relative to what",
            hint="Give the whole path, from /.",
        )
    path = os.path.normpath(path)
    return ModelEntry(ModelName(path), PATH_SOURCE, (ModelFile("weights", path),))
