"""The folders that the user added: kept in a file that survives whatever happens, and given to the sources."""

from __future__ import annotations

import asyncio
import threading
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand_ins import StandInSource, a_store, looker_of

from enclaved.daemon.catalog import folders as folders_module
from enclaved.daemon.catalog.folders import FILE_BYTES_MAX, Folders, folders_in, text_of
from enclaved.daemon.refusal import RefusalError
from enclaved.plugin.hookspecs import SourceContext, WatchedFolder
from enclaved.plugin.model import ModelEntry, ModelFile, ModelName

pytestmark = pytest.mark.asyncio

Begin = Callable[[], Folders]


class TakesFolders(StandInSource):
    """Offers the files in the folders that it is given."""

    takes_folders = True

    def models(self, context: SourceContext) -> list[ModelEntry]:
        return [
            ModelEntry(ModelName(f"{self.name}:{file}"), self.name, (ModelFile("weights", str(file)),))
            for folder in context.folders
            if folder.is_dir()
            for file in sorted(folder.iterdir())
        ]

    def watched(self, context: SourceContext) -> list[WatchedFolder]:
        return [WatchedFolder(folder) for folder in context.folders]


@pytest.fixture
def begin(tmp_path: Path) -> Begin:
    """A new daemon's folders, by the file that the last one left."""

    def begun() -> Folders:
        store = a_store()
        folders = Folders(tmp_path / "config" / "folders.toml", looker_of(TakesFolders("one", []), store=store), store)
        folders.read()
        return folders

    return begun


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


async def refused(awaited: object) -> RefusalError:
    with pytest.raises(RefusalError) as caught:
        await awaited  # pyright: ignore[reportGeneralTypeIssues]
    return caught.value


async def test_an_added_folder_is_looked_into_and_remembered(begin: Begin, models: Path) -> None:
    folders = begin()
    assert await folders.list() == []
    added = await folders.add(str(models))
    assert (added.path, added.source, added.is_added, added.problem) == (str(models), "one", True, None)
    assert await folders.list() == [added]
    assert [each.path for each in await begin().list()] == [str(models)]


async def test_a_removed_folder_is_forgotten_and_left_as_it_is(begin: Begin, models: Path) -> None:
    folders = begin()
    (models / "kept").write_bytes(b"x")
    await folders.add(str(models))
    await folders.remove(f"{models}/../models")
    assert await folders.list() == []
    assert (models / "kept").read_bytes() == b"x"
    assert await begin().list() == []


async def test_a_folder_that_went_away_stays_listed_with_the_reason(begin: Begin, models: Path) -> None:
    folders = begin()
    await folders.add(str(models))
    models.rmdir()  # noqa: ASYNC240
    again = begin()
    await again.add(str(models))
    (listed,) = await again.list()
    assert "No such file" in (listed.problem or "")


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("models", "relative"),
        ("/", "all of this machine"),
        ("{tmp}/nothing", "does not exist"),
        ("{tmp}/file", "is a file"),
        ("{tmp}/nul\0", "null"),
        ("{tmp}/\udcff", "does not exist|no text"),
    ],
)
async def test_what_is_no_folder_of_models_is_refused(begin: Begin, tmp_path: Path, path: str, told: str) -> None:
    (tmp_path / "file").touch()
    refusal = await refused(begin().add(path.format(tmp=tmp_path)))
    assert refusal.code == "bad_request"
    assert any(part in refusal.message for part in told.split("|")), refusal.message
    assert not (tmp_path / "config").exists()


async def test_a_folder_that_was_not_added_cannot_be_removed(begin: Begin, models: Path) -> None:
    refusal = await refused(begin().remove(str(models)))
    assert refusal.code == "bad_request"
    assert "none of the folders" in refusal.message


async def test_without_a_source_that_takes_folders_none_can_be_added(models: Path, tmp_path: Path) -> None:
    store = a_store()
    folders = Folders(tmp_path / "folders.toml", looker_of(StandInSource("one", []), store=store), store)
    assert (await refused(folders.add(str(models)))).code == "unsupported"


@pytest.mark.parametrize(
    "content",
    [b"folders = [", b"folders = 1", b"folders = [1]", b'folders = ["models"]', b"other = 1", b"\xff", b"#" * 2**21],
)
async def test_a_file_that_makes_no_sense_is_told_and_never_replaced(
    begin: Begin, models: Path, tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "config" / "folders.toml"
    file.parent.mkdir()
    file.write_bytes(content)
    folders = begin()
    assert str(file) in (folders.problem or "")
    assert (await refused(folders.add(str(models)))).code == "disk_failed"
    assert file.read_bytes() == content


async def test_what_cannot_be_written_changes_nothing(begin: Begin, models: Path, tmp_path: Path) -> None:
    (tmp_path / "config").write_text("a file where the folder should be")
    folders = begin()
    assert (await refused(folders.add(str(models)))).code == "disk_failed"
    assert await folders.list() == []


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), min_size=1), max_size=5))
async def test_every_path_is_read_as_it_was_written(names: list[str]) -> None:
    paths = tuple(dict.fromkeys(f"/{name}" for name in names if name not in (".", "..")))
    text = text_of(paths)
    assert folders_in(text.encode()) == paths
    assert tomllib.loads(text)["folders"] == list(paths)


async def test_a_file_of_a_thousand_long_paths_is_not_too_large() -> None:
    paths = tuple(f"/{'x' * 200}/{number}" for number in range(1000))
    assert len(text_of(paths)) < FILE_BYTES_MAX


async def test_who_gives_up_while_the_file_is_written_leaves_file_and_list_alike(
    begin: Begin, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, may_end = threading.Event(), threading.Event()
    replace = folders_module._replace  # pyright: ignore[reportPrivateUsage]

    def slowly(file: Path, text: str) -> None:
        began.set()
        may_end.wait()
        replace(file, text)

    monkeypatch.setattr(folders_module, "_replace", slowly)
    folders = begin()
    adding = asyncio.create_task(folders.add(str(models)))
    await asyncio.to_thread(began.wait)
    adding.cancel()
    may_end.set()
    await asyncio.wait([adding])
    assert [each.path for each in await folders.list()] == [str(models)]
    assert [each.path for each in await begin().list()] == [str(models)]
