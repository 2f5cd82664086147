"""What may be offered of what a source lists, and how that differs from before."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stand_ins import StandInSource, an_entry, context_of

from enclaved.daemon.catalog.arrivals import HeaderState
from enclaved.daemon.catalog.files import FileIdentity
from enclaved.daemon.catalog.listing import Found, Listing, find, sort_out
from enclaved.plugin.model import ModelEntry

NOW = 1_000_000.0


def _file(number: int, age_seconds: float = 1000.0) -> FileIdentity:
    return FileIdentity(1, number, 100, int((NOW - age_seconds) * 1e9))


def _found(
    name: str, number: int, *, age_seconds: float = 1000.0, is_being_written: bool | None = False, size_bytes: int = 0
) -> Found:
    return Found(an_entry(f"/m/{name}"), size_bytes, (_file(number, age_seconds),), is_being_written)


def _sorted(
    *found: Found, before: Mapping[str, Found] | None = None, headers: Mapping[int, HeaderState] | None = None
) -> Listing:
    def header_of(identity: FileIdentity, entry: ModelEntry) -> HeaderState:
        return (headers or {}).get(identity.inode, "read")

    return sort_out(found, before or {}, header_of, frozenset({_file(99)}), NOW)


def test_what_is_new_or_different_or_gone_is_told() -> None:
    same, old, gone = _found("same", 1), _found("changed", 2), _found("gone", 3)
    before = {str(each.entry.name): each for each in (same, old, gone)}
    listing = _sorted(same, _found("changed", 2, size_bytes=5), _found("new", 4), before=before)
    assert [(each.entry.name, each.size_bytes) for each in listing.different] == [("/m/changed", 5), ("/m/new", 0)]
    assert listing.gone == ["/m/gone"]
    assert set(listing.offered) == {"/m/same", "/m/changed", "/m/new"}


def test_a_model_that_is_being_written_is_gone_until_it_is_whole() -> None:
    before = {"/m/a": _found("a", 1)}
    listing = _sorted(_found("a", 2, age_seconds=0.0, is_being_written=True), before=before, headers={2: "unread"})
    assert (listing.gone, listing.urgent, listing.whole) == (["/m/a"], {}, set())


def test_a_replaced_model_keeps_its_name_until_the_new_header_was_read() -> None:
    before = {"/m/a": _found("a", 1)}
    new = _found("a", 2, age_seconds=0.0)
    listing = _sorted(new, before=before, headers={2: "unread"})
    assert (listing.offered, listing.gone, listing.different) == (before, [], [])
    assert listing.urgent == {_file(2, 0.0): new}
    assert listing.again_seconds == 10.0


def test_headers_of_older_files_are_read_while_they_are_offered_already() -> None:
    listing = _sorted(_found("a", 1), _found("b", 99), headers={1: "unread", 99: "unread"})
    assert set(listing.offered) == {"/m/a", "/m/b"}
    assert (set(listing.unread), listing.urgent) == ({_file(1)}, {})


def test_a_file_that_cannot_be_looked_at_is_not_offered() -> None:
    assert _sorted(Found(an_entry("/m/a"), 0, (None,), False)).offered == {}


def test_a_model_of_several_files_is_as_new_as_its_newest() -> None:
    found = Found(an_entry("/m/a", "/m/b"), 0, (_file(1), _file(2, 0.0)), False)
    assert _sorted(found, headers={1: "unread"}).offered == {}


def test_only_files_that_are_not_known_to_be_whole_are_asked_about(tmp_path: Path) -> None:
    one, two = tmp_path / "one.gguf", tmp_path / "two.gguf"
    two.write_bytes(b"22")
    with one.open("wb") as file:
        file.write(b"1")
        file.flush()
        source = StandInSource("s", [an_entry(str(one)), an_entry(str(two)), an_entry(str(tmp_path / "none"))])
        context = context_of(tmp_path)
        found = find(source, context, set())
        assert [each.is_being_written for each in found] == [True, False, False]
        assert [each.size_bytes for each in found] == [1, 2, 0]
        assert found[2].identities == (None,)
        known = {each.first for each in found if each.first is not None}
        assert [each.is_being_written for each in find(source, context, known)] == [False] * 3
        assert [each.is_being_written for each in find(source, context, None)] == [False] * 3
