"""What the catalog's tables give back is what was put in, and a new listing tells exactly what is different."""

from __future__ import annotations

from collections.abc import Mapping
from sqlite3 import Connection, connect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclaved.daemon.catalog.records import (
    Changes,
    Listed,
    count_models,
    entry_meant,
    forget_headers,
    forget_sources_but,
    has_header,
    header_of,
    keep_header,
    lines_named,
    lines_of_models,
    names_of_models,
    replace_models,
    update_models,
)
from enclaved.daemon.catalog.schema import migrate
from enclaved.plugin.model import ModelEntry, ModelFile, ModelHeader, ModelName

HEADER = ModelHeader("gguf", "llama", capabilities=("generate", "chat"), head_count_kv=(2, 2), tensor_types={"F32": 9})


def _database() -> Connection:
    connection = connect(":memory:", isolation_level=None)
    migrate(connection)
    return connection


def _listed(name: str, size_bytes: int = 0, identity: str | None = None) -> Listed:
    return Listed(ModelEntry(ModelName(name), "one", (ModelFile("weights", f"/m/{name}"),)), size_bytes, identity)


@given(st.lists(st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 2), max_size=6), max_size=5))
def test_each_listing_replaces_the_one_before_and_tells_the_difference(listings: list[Mapping[str, int]]) -> None:
    connection, before = _database(), dict[str, int]()
    replace_models(connection, "two", [_listed("z")], 0.0)
    for sizes in listings:
        changes = replace_models(connection, "one", [_listed(name, size) for name, size in sizes.items()], 1.0)
        assert set(changes.added) == sizes.keys() - before.keys()
        assert set(changes.removed) == before.keys() - sizes.keys()
        assert set(changes.changed) == {n for n in sizes.keys() & before.keys() if sizes[n] != before[n]}
        assert names_of_models(connection) == [*sorted(sizes), "z"]
        before = dict(sizes)
    connection.close()


@given(st.sets(st.text(st.characters(codec="utf-8"), min_size=1), max_size=20), st.integers(1, 7))
def test_pages_give_every_model_once_by_name(names: set[str], limit: int) -> None:
    connection, found, has_more = _database(), list[str](), True
    replace_models(connection, "one", [_listed(name) for name in names], 0.0)
    while has_more:
        lines, has_more = lines_of_models(connection, found[-1] if found else "", limit)
        assert len(lines) == limit or not has_more
        found += [line.name for line in lines]
    assert found == sorted(names, key=lambda name: name.encode())
    assert count_models(connection) == len(names)
    connection.close()


def test_an_entry_comes_back_as_it_was() -> None:
    connection = _database()
    entry = ModelEntry(
        ModelName("m"),
        "one",
        (ModelFile("weights", "/m/a-00001-of-00002.gguf"), ModelFile("shard", "/m/a-00002-of-00002.gguf")),
        ("x", "y"),
        HEADER,
        {"seed": 1, "slow": True, "pace": 0.5, "word": "w"},
        "a note",
    )
    replace_models(connection, "one", [Listed(entry, 7, "file:1")], 0.0)
    assert entry_meant(connection, "m", ["one"]) == entry
    assert entry_meant(connection, "other", ["one"]) is None
    (line,) = lines_named(connection, ["other", "m"])
    assert (line.path, line.backends, line.capabilities) == (
        "/m/a-00001-of-00002.gguf",
        ("x", "y"),
        HEADER.capabilities,
    )
    assert (line.source, line.note, line.size_bytes) == ("one", "a note", 7)


def test_a_lines_capabilities_are_those_of_the_files_header_once_that_was_read() -> None:
    connection = _database()
    replace_models(connection, "one", [_listed("m", identity="file:1"), _listed("n", identity="file:2")], 0.0)
    keep_header(connection, "file:1", "reader", "1", HEADER, 0.0)
    assert [line.capabilities for line in lines_named(connection, ["m", "n"])] == [("generate", "chat"), ()]


def test_a_name_belongs_to_whoever_had_it_first() -> None:
    connection = _database()
    replace_models(connection, "one", [_listed("m", 1)], 0.0)
    assert not replace_models(connection, "two", [_listed("m", 2)], 0.0)
    assert not replace_models(connection, "two", [], 0.0)
    assert [line.size_bytes for line in lines_named(connection, ["m"])] == [1]


def test_models_of_a_source_that_is_gone_go() -> None:
    connection = _database()
    replace_models(connection, "one", [_listed("m")], 0.0)
    replace_models(connection, "two", [_listed("n")], 0.0)
    forget_sources_but(connection, ["two", "three"])
    assert names_of_models(connection) == ["n"]
    forget_sources_but(connection, [])
    assert names_of_models(connection) == []


def _called(name: str, *also: str) -> Listed:
    return Listed(ModelEntry(ModelName(name), "one", (), also=also), 0, None)


def test_a_reference_means_the_model_of_that_name_or_the_only_one_that_is_also_called_so() -> None:
    connection = _database()

    def meant(reference: str, *sources: str) -> str | None:
        entry = entry_meant(connection, reference, sources or ["one"])
        return None if entry is None else entry.name

    replace_models(connection, "one", [_called("a", "x", "b", "s"), _called("b", "y", "s")], 0.0)
    assert [meant(reference) for reference in ("a", "b", "x", "y", "s", "z")] == ["a", "b", "a", "b", None, None]
    assert (meant("a", "two"), meant("x", "two"), meant("x", "two", "one")) == (None, None, "a")
    replace_models(connection, "one", [_called("b", "x")], 0.0)
    assert [meant(reference) for reference in ("a", "b", "x", "y", "s")] == [None, "b", "b", None, None]
    forget_sources_but(connection, [])
    assert connection.execute("SELECT * FROM also").fetchall() == []


def test_a_header_comes_back_for_its_reader_and_file_only() -> None:
    connection = _database()
    keep_header(connection, "file:1", "reader", "1", HEADER, 0.0)
    assert header_of(connection, "file:1", "reader", "1") == HEADER
    assert header_of(connection, "file:1", "other", "1") is None
    assert header_of(connection, "file:2", "reader", "1") is None
    assert header_of(connection, "file:1", "reader", "2") is None
    assert [has_header(connection, "file:1", version) for version in ("1", "2")] == [True, False]


def test_old_headers_are_forgotten_unless_their_models_are_listed() -> None:
    connection = _database()
    replace_models(connection, "one", [_listed("m", identity="file:1"), _listed("n")], 0.0)
    for number in (1, 2, 3):
        keep_header(connection, f"file:{number}", "reader", "1", HEADER, float(number))
    forget_headers(connection, 3.0)
    assert [has_header(connection, f"file:{number}", "1") for number in (1, 2, 3)] == [True, False, True]


def test_an_update_tells_what_it_changed_and_leaves_the_rest() -> None:
    connection = _database()
    replace_models(connection, "two", [_listed("z")], 0.0)
    replace_models(connection, "one", [_listed("a"), _listed("b"), _listed("c")], 0.0)
    changes = update_models(
        connection, "one", [_listed("a"), _listed("b", 1), _listed("d"), _listed("z", 1)], ["c", "z", "none"], 0.0
    )
    assert changes == Changes(added=("d",), changed=("b",), removed=("c",))
    assert names_of_models(connection) == ["a", "b", "d", "z"]


@pytest.mark.parametrize("packed", [b"", b"\xc1", b"\x01", b"\x80", b"\x81\xa6format\x01"])
def test_a_row_that_is_not_understood_is_as_good_as_none(packed: bytes) -> None:
    connection = _database()
    keep_header(connection, "file:1", "reader", "1", HEADER, 0.0)
    connection.execute("UPDATE headers SET header = ?", (packed,))
    assert header_of(connection, "file:1", "reader", "1") is None
    replace_models(connection, "one", [_listed("m")], 0.0)
    connection.execute("UPDATE models SET entry = '{\"name\": 1}'")
    assert entry_meant(connection, "m", ["one"]) is None


def test_no_changes_are_nothing() -> None:
    assert not Changes()
    assert all([Changes(added=("a",)), Changes(changed=("a",)), Changes(removed=("a",))])
