"""Which models there are, and what a reference means, by asking in this order: aliases, paths, then each source.

What the sources list is kept in the store, so that a list of ten thousand models is read page by page and told at once
after a start. Sources touch the disk, so they are asked in a thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from sqlite3 import Connection

from enclaved.daemon.catalog.looking import Looker
from enclaved.daemon.catalog.records import (
    Line,
    count_models,
    entry_meant,
    lines_named,
    lines_of_models,
    names_of_models,
)
from enclaved.daemon.catalog.references import entry_of_path, looks_like_a_path, without_alias
from enclaved.daemon.catalog.store import Store
from enclaved.daemon.refusal import RefusalError
from enclaved.plugin.model import ModelEntry, ModelName

logger = logging.getLogger("enclaved.catalog")


@dataclass(frozen=True)
class OwnNames:
    """The user's choices among the models, by their canonical names."""

    default: ModelName | None
    """The model of a client that names none."""
    aliases: Mapping[ModelName, tuple[str, ...]]


@dataclass(frozen=True)
class Page:
    """Some of the models, by name."""

    lines: Sequence[Line]
    has_more: bool
    total: int
    """Models in all."""


class Catalog:
    """The models of every source, and the user's own names for them."""

    def __init__(
        self,
        store: Store,
        looker: Looker,
        aliases: Mapping[str, str],
        default_model: str,
    ) -> None:
        self._store = store
        self._looker = looker
        self._aliases = aliases
        self._default_model = default_model

    @property
    def problem(self) -> str | None:
        """Why what is learned now may be lost at the daemon's end."""
        return self._store.problem

    async def look(self) -> None:
        """Looks at every source that is not watched anyway."""
        await self._looker.look()

    async def page(self, after: str, limit: int) -> Page:
        """The models as they were listed last, by name: `limit` of them behind the name `after`."""

        def read(connection: Connection) -> Page:
            lines, has_more = lines_of_models(connection, after, limit)
            return Page(lines, has_more, count_models(connection))

        return await self._store.read(read)

    async def lines(self, names: Sequence[str]) -> list[Line]:
        """Those of these models that are there, as they were listed last."""
        return await self._store.read(lambda connection: lines_named(connection, names))

    async def resolve(self, reference: str | None) -> ModelEntry:
        """The model that a reference means; without one, the default model.

        Raises RefusalError: `model_not_found`, `bad_reference`, `model_unreadable`.
        """
        wanted = without_alias(reference or self._default_model, self._aliases)
        if looks_like_a_path(wanted):
            return entry_of_path(wanted)
        if watched := self._looker.watched_sources:
            entry = await self._store.read(lambda connection: entry_meant(connection, wanted, watched))
            if entry is not None:
                return entry
        failed: list[str] = []
        for source, context in self._looker.sources:
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

    async def _not_found(self, wanted: str) -> RefusalError:
        import difflib  # only when something is wrong: it would slow every start

        await self.look()
        names = await self._store.read(names_of_models)
        near = difflib.get_close_matches(wanted, [*names, *self._aliases], n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        return RefusalError(
            "model_not_found", f"there is no model {wanted!r}", hint=f"{hint}`enclave list` shows the models."
        )
