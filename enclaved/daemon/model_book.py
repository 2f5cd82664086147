"""What clients are told of models: the catalog's lines with what this daemon adds to them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from enclave.protocol.bodies import ModelHeaderInfo, ModelInfo, ModelShow, ModelsResult
from enclaved.daemon.catalog import Catalog, Line, OwnNames
from enclaved.daemon.needs import backends_for
from enclaved.plugin.hookspecs import Backend
from enclaved.plugin.model import ModelEntry, ModelHeader

ALL_A_PAGE = 1000


class ModelBook:
    """The models as clients see them."""

    def __init__(self, catalog: Catalog, backends: Mapping[str, Backend]) -> None:
        self._catalog = catalog
        self._backends = backends

    async def look(self) -> None:
        """Looks at every source anew."""
        await self._catalog.look()

    async def page(self, after: str, limit: int) -> ModelsResult:
        """The models by name: `limit` of them behind the name `after`."""
        page = await self._catalog.page(after, limit)
        infos = await self._infos(page.lines)
        return ModelsResult(models=infos, next=infos[-1].name if page.has_more else None, total=page.total)

    async def infos(self, names: Sequence[str]) -> tuple[ModelInfo, ...]:
        """Those of these models that are there."""
        return await self._infos(await self._catalog.lines(names))

    async def all_infos(self) -> list[ModelInfo]:
        """All models, by name."""
        page = await self.page("", ALL_A_PAGE)
        found = list(page.models)
        while page.next is not None:
            page = await self.page(page.next, ALL_A_PAGE)
            found += page.models
        return found

    async def show(self, entry: ModelEntry, header: ModelHeader, problem: str | None) -> ModelShow:
        """A model with its header, and why it cannot be run."""
        names = await self._catalog.own_names()
        line = Line(
            name=entry.name,
            source=entry.source,
            path=entry.files[0].path if entry.files else None,
            backends=entry.backends,
            capabilities=header.capabilities,
            note=entry.note or "",
            size_bytes=await asyncio.to_thread(_size_bytes, entry),
        )
        info = _info(line, names, self._backends)
        return ModelShow(
            name=info.name,
            source=info.source,
            size=info.size,
            backends=info.backends,
            capabilities=info.capabilities,
            note=info.note,
            path=info.path,
            default=info.default,
            aliases=info.aliases,
            header=_header_info(header),
            files=tuple(file.path for file in entry.files),
            problem=problem,
        )

    async def _infos(self, lines: Sequence[Line]) -> tuple[ModelInfo, ...]:
        names = await self._catalog.own_names()
        return await asyncio.to_thread(lambda: tuple(_info(line, names, self._backends) for line in lines))


def _info(line: Line, names: OwnNames, backends: Mapping[str, Backend]) -> ModelInfo:
    return ModelInfo(
        name=line.name,
        source=line.source,
        size=line.size_bytes,
        backends=tuple(backends_for(line.backends, line.path, backends)),
        capabilities=line.capabilities,
        note=line.note,
        path=line.path,
        default=line.name == names.default,
        aliases=names.aliases.get(line.name, ()),
    )


def _header_info(header: ModelHeader) -> ModelHeaderInfo:
    return ModelHeaderInfo(
        format=header.format,
        architecture=header.architecture,
        parameters=header.parameters,
        quantisation=header.quantisation,
        context_length=header.context_length,
        embedding_length=header.embedding_length or None,
        layers=header.block_count or None,
        vocabulary_size=header.vocabulary_size or None,
        template=header.template_bytes > 0,
        licence=header.licence,
        name=header.name,
    )


def _size_bytes(entry: ModelEntry) -> int:
    size = 0
    for file in entry.files:
        with suppress(OSError):
            size += Path(file.path).stat().st_size
    return size
