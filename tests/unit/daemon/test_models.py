"""What the daemon remembers of the models that were asked for."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path

import pytest
from stand_ins import StandInBackend, StandInSource, an_entry, catalog_of, headers_by

from enclaved.core.events import Wish
from enclaved.core.ids import ModelKey
from enclaved.daemon.catalog.headers import ReadHeader
from enclaved.daemon.models import KNOWN_MAX, READINGS_MAX, Models, open_files
from enclaved.daemon.needs import InstanceSettings
from enclaved.daemon.refusal import RefusalError
from enclaved.plugin.model import ModelEntry, ModelHeader

pytestmark = pytest.mark.asyncio

HEADER = ModelHeader(format="x", architecture="y", context_length=100)


class ReadingBackend(StandInBackend):
    header_reader = "module:function"


async def _header(name: str, reader: str, descriptor: int) -> ModelHeader:
    return HEADER


def _models(*entries: ModelEntry, read: ReadHeader = _header) -> Models:
    source = StandInSource("one", entries)
    catalog = catalog_of(source)
    backends = {"x": ReadingBackend("x"), "y": ReadingBackend("y")}
    return Models(catalog, headers_by(read), backends, InstanceSettings(), device="cpu", cores=2)


async def _key(models: Models, reference: str, backend: str | None = None) -> ModelKey:
    return (await models.need(*(await models.choose(reference, backend)), Wish())).model


def _replace(path: Path, text: str) -> None:
    other = path.with_suffix(".new")
    other.write_text(text)
    other.replace(path)


async def test_the_same_model_has_the_same_key_and_another_backend_another(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_text("one")
    models = _models()
    key = await _key(models, str(path))
    assert await _key(models, str(path)) == key
    assert await _key(models, str(path), "y") != key
    assert models.known(key).entry.name == str(path)
    assert len(models.keys_of(models.known(key).entry)) == 2


async def test_a_replaced_file_has_a_new_key_and_the_old_one_keeps_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_text("one")
    models = _models()
    keys = [await _key(models, str(path))]
    for text in ("two!", "three"):
        _replace(path, text)
        keys += [await _key(models, str(path)), await _key(models, str(path))]
    assert keys[1] == keys[2]
    assert keys[3] == keys[4]
    assert len(set(keys)) == 3
    assert models.known(keys[0]).identity != models.known(keys[1]).identity
    assert sorted(models.keys_of(models.known(keys[0]).entry)) == sorted(set(keys))


async def test_what_nobody_uses_is_forgotten_when_there_is_too_much() -> None:
    entries = [an_entry(name=f"m{number}", backends=("x",), header=HEADER) for number in range(KNOWN_MAX + 50)]
    models = _models(*entries)
    used: set[ModelKey] = set()
    for number, entry in enumerate(entries):
        key = await _key(models, entry.name)
        if number < 10:
            used.add(key)
        models.forget_but(used | {key})
    assert sum(len(models.keys_of(entry)) for entry in entries) <= KNOWN_MAX + len(used) + 1
    for key in used:
        assert models.known(key).key == key


async def test_a_key_is_never_given_to_another_file_while_it_is_in_use(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_text("one")
    models = _models()
    first = await _key(models, str(path))
    _replace(path, "two!")
    second = await _key(models, str(path))
    for number in range(KNOWN_MAX):
        (tmp_path / f"{number}.gguf").write_text("")
        await _key(models, str(tmp_path / f"{number}.gguf"))
    models.forget_but({second})
    assert await _key(models, str(path)) == second
    _replace(path, "three")
    third = await _key(models, str(path))
    assert third not in (second, f"{first}~2")


async def test_a_missing_file_is_refused_before_anything_is_started(tmp_path: Path) -> None:
    with pytest.raises(RefusalError) as refused:
        await _models().choose(str(tmp_path / "no.gguf"), None)
    assert refused.value.code == "model_unreadable"


def _open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="descriptors are counted in /proc")
async def test_a_header_that_nobody_waits_for_any_more_is_read_to_its_end(tmp_path: Path) -> None:
    """Else its file would stay open, or the next in the queue pay for it; and no more files are open than may be."""
    reading, may_end, descriptors = asyncio.Event(), asyncio.Event(), list[int]()

    async def read(name: str, reader: str, descriptor: int) -> ModelHeader:
        descriptors.append(descriptor)
        reading.set()
        await may_end.wait()
        os.fstat(descriptor)
        return HEADER

    models = _models(read=read)
    path = tmp_path / "a.gguf"
    path.write_text("one")
    for number in range(READINGS_MAX):
        (tmp_path / f"{number}.gguf").write_text("one")
        reading.clear()
        asking = asyncio.create_task(_key(models, str(tmp_path / f"{number}.gguf")))
        await reading.wait()
        asking.cancel()
        with suppress(asyncio.CancelledError):
            await asking
    next_one = asyncio.create_task(_key(models, str(path)))
    given_up = asyncio.create_task(_key(models, str(path)))
    await asyncio.to_thread(lambda: None)
    given_up.cancel()
    assert len(descriptors) == READINGS_MAX
    may_end.set()
    assert await next_one == f"{path}@x"
    assert len(descriptors) == READINGS_MAX + 1
    for descriptor in set(descriptors):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


async def test_when_one_of_several_files_is_missing_none_stays_open(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.gguf" for number in range(3)]
    for path in paths:
        path.write_text("x")
    models = _models(an_entry(*map(str, paths), name="many"))
    known = models.known(await _key(models, "many"))
    files = open_files(known.entry, known.identity)
    assert [name for _, name, _, _ in files] == ["0.gguf", "1.gguf", "2.gguf"]
    for _, _, descriptor, _ in files:
        os.close(descriptor)
    paths[2].unlink()
    before = _open_descriptors()
    with pytest.raises(RefusalError):
        open_files(known.entry, known.identity)
    assert _open_descriptors() == before


async def test_a_file_that_was_replaced_since_its_header_was_read_is_not_loaded_as_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_text("one")
    models = _models()
    known = models.known(await _key(models, str(path)))
    _replace(path, "two!")
    with pytest.raises(RefusalError) as refused:
        open_files(known.entry, known.identity)
    assert refused.value.code == "model_unreadable"
