"""The catalog's database: whole transactions, in order, in one thread; and trouble with it stops nobody."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from pathlib import Path
from sqlite3 import Connection

import pytest
from stand_ins import a_store

from enclaved.daemon.catalog import schema
from enclaved.daemon.catalog.records import Listed, names_of_models, replace_models
from enclaved.daemon.refusal import RefusalError
from enclaved.plugin.model import ModelEntry, ModelName

pytestmark = pytest.mark.asyncio


def _listing(*names: str) -> list[Listed]:
    return [Listed(ModelEntry(ModelName(name), "one", ()), 0, None) for name in names]


async def test_what_was_written_is_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "c.sqlite"
    store = a_store(path)
    await store.write(lambda connection: replace_models(connection, "one", _listing("a", "b"), 1.0))
    await store.close()
    assert await a_store(path).read(names_of_models) == ["a", "b"]


async def test_a_write_that_fails_changes_nothing(tmp_path: Path) -> None:
    store = a_store(tmp_path / "c.sqlite")

    def fail(connection: Connection) -> None:
        replace_models(connection, "one", _listing("a"), 1.0)
        raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        await store.write(fail)
    assert await store.read(names_of_models) == []
    assert store.problem is None


async def test_all_work_is_done_in_one_thread_in_order(tmp_path: Path) -> None:
    store, order = a_store(tmp_path / "c.sqlite"), list[int]()
    threads = await asyncio.gather(
        *(store.read(lambda _, number=number: (order.append(number), threading.get_ident())[1]) for number in range(50))
    )
    assert len(set(threads)) == 1
    assert threading.get_ident() not in threads
    assert order == list(range(50))


@pytest.mark.parametrize("damage", [b"this is no database" * 100, None])
async def test_a_damaged_file_is_moved_aside_and_made_anew(tmp_path: Path, damage: bytes | None) -> None:
    path = tmp_path / "c.sqlite"
    store = a_store(path)
    await store.write(lambda connection: replace_models(connection, "one", _listing(*map(str, range(500))), 1.0))
    await store.close()
    broken = damage or path.read_bytes()[:4096] + bytes(8 * 4096)
    path.write_bytes(broken)
    store = a_store(path)
    await store.write(lambda connection: replace_models(connection, "one", _listing("a"), 1.0))
    assert await store.read(names_of_models) == ["a"]
    assert (tmp_path / "c.sqlite.damaged").read_bytes() == broken
    assert "damaged" in (store.problem or "")
    await store.close()
    store = a_store(path)
    assert await store.read(names_of_models) == ["a"]
    assert store.problem is None


async def test_a_file_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA user_version = {len(schema.STEPS) + 1}")
    connection.close()
    before = path.read_bytes()
    store = a_store(path)
    await store.write(lambda connection: replace_models(connection, "one", _listing("a"), 1.0))
    assert await store.read(names_of_models) == ["a"]
    assert "memory" in (store.problem or "")
    await store.close()
    assert path.read_bytes() == before


async def test_where_no_file_can_be_made_the_catalog_lives_in_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = a_store(tmp_path / "file" / "c.sqlite")
    await store.write(lambda connection: replace_models(connection, "one", _listing("a"), 1.0))
    assert await store.read(names_of_models) == ["a"]
    assert str(tmp_path) in (store.problem or "")


async def test_a_disk_that_gets_full_loses_nothing_that_is_there(tmp_path: Path) -> None:
    store = a_store(tmp_path / "c.sqlite")
    await store.write(lambda connection: replace_models(connection, "one", _listing("a"), 1.0))

    def fill(connection: Connection) -> None:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")

    await store.read(fill)  # SQLite says the same of it as of a disk without room
    await store.write(lambda connection: replace_models(connection, "two", _listing(*map(str, range(2000))), 1.0))
    assert len(await store.read(names_of_models)) == 2001
    assert "full" in (store.problem or "")


async def test_older_tables_become_todays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.sqlite"
    store = a_store(path)
    await store.write(lambda connection: replace_models(connection, "one", _listing("a"), 1.0))
    await store.close()
    monkeypatch.setattr(schema, "STEPS", (*schema.STEPS, "CREATE TABLE later(x); INSERT INTO later VALUES (7);"))
    store = a_store(path)
    assert await store.read(lambda connection: connection.execute("SELECT x FROM later").fetchall()) == [(7,)]
    assert await store.read(names_of_models) == ["a"]


async def test_a_step_that_fails_leaves_the_older_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.sqlite"
    store = a_store(path)
    await store.write(lambda connection: replace_models(connection, "one", _listing("a"), 1.0))
    await store.close()
    with monkeypatch.context() as patch:
        patch.setattr(schema, "STEPS", (*schema.STEPS, "CREATE TABLE later(x); CREATE TABLE models(x);"))
        broken = a_store(path)
        with pytest.raises(sqlite3.OperationalError):
            await broken.read(names_of_models)
    store = a_store(path)
    assert await store.read(names_of_models) == ["a"]
    assert store.problem is None


async def test_a_closed_store_says_that_the_daemon_ends() -> None:
    store = a_store()
    await store.close()
    await store.close()
    with pytest.raises(RefusalError, match="about to end"):
        await store.read(names_of_models)
