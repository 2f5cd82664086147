"""A header is read once for each file, and no descriptor stays open."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from stand_ins import a_store, headers_by

from enclaved.daemon.refusal import RefusalError
from enclaved.plugin.model import ModelHeader

pytestmark = pytest.mark.asyncio


class Reader:
    """Notes what it was asked to read."""

    def __init__(self) -> None:
        self.read: list[tuple[str, str, int]] = []
        self.fails = False

    async def __call__(self, name: str, reader: str, descriptor: int) -> ModelHeader:
        self.read.append((name, reader, descriptor))
        if self.fails:
            raise RefusalError("bad_model_file", "no")
        return ModelHeader(format="x", architecture=os.read(descriptor, 100).decode())


async def test_the_same_file_is_read_once_for_each_reader(tmp_path: Path) -> None:
    path, reader = tmp_path / "m", Reader()
    path.write_text("one")
    cache = headers_by(reader)
    for name in ("a", "a", "b"):
        header, identity = await cache.get(str(path), name)
        assert (header.architecture, identity.size_bytes) == ("one", 3)
    assert [name for _, name, _ in reader.read] == ["a", "b"]


async def test_a_replaced_file_is_read_again(tmp_path: Path) -> None:
    path, cache = tmp_path / "m", headers_by(Reader())
    path.write_text("one")
    first, one = await cache.get(str(path), "r")
    (tmp_path / "n").write_text("two")
    (tmp_path / "n").replace(path)
    second, two = await cache.get(str(path), "r")
    assert (first.architecture, second.architecture) == ("one", "two")
    assert one != two


@pytest.mark.parametrize("fails", [False, True])
async def test_the_file_is_closed_afterwards_and_a_failure_is_not_remembered(tmp_path: Path, fails: bool) -> None:
    path, reader = tmp_path / "m", Reader()
    path.write_text("one")
    reader.fails = fails
    cache = headers_by(reader)
    if fails:
        with pytest.raises(RefusalError):
            await cache.get(str(path), "r")
    else:
        await cache.get(str(path), "r")
    with pytest.raises(OSError):
        os.fstat(reader.read[0][2])
    reader.fails = False
    await cache.get(str(path), "r")
    assert len(reader.read) == (2 if fails else 1)


async def test_a_header_outlives_the_daemon(tmp_path: Path) -> None:
    path, reader = tmp_path / "m", Reader()
    path.write_text("one")
    for _ in range(2):
        store = a_store(tmp_path / "catalog.sqlite")
        header, _ = await headers_by(reader, store).get(str(path), "r")
        assert header.architecture == "one"
        await store.close()
    assert len(reader.read) == 1
