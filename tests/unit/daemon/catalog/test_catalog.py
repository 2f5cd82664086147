"""What a reference means: aliases, paths, then each source; and no source can spoil it for the others."""

from __future__ import annotations

import pytest
from stand_ins import StandInSource, an_entry, catalog_of

from enclaved.daemon.catalog import Catalog
from enclaved.daemon.catalog.catalog import looks_like_a_path
from enclaved.daemon.refusal import RefusalError

pytestmark = pytest.mark.asyncio


SOURCE = StandInSource("one", [an_entry("/m/tiny.gguf", name="tiny"), an_entry("/m/big.gguf", name="big")])


async def _refused(catalog: Catalog, reference: str) -> RefusalError:
    with pytest.raises(RefusalError) as refused:
        await catalog.resolve(reference)
    return refused.value


async def _names(catalog: Catalog) -> list[str]:
    await catalog.look()
    return [line.name for line in (await catalog.page("", 100)).lines]


async def test_a_name_is_what_the_first_source_says_that_knows_it() -> None:
    other = StandInSource("two", [an_entry("/n/big.gguf", name="big"), an_entry("/n/new.gguf", name="new")])
    catalog = catalog_of(SOURCE, other)
    assert (await catalog.resolve("big")).files[0].path == "/m/big.gguf"
    assert (await catalog.resolve("new")).files[0].path == "/n/new.gguf"


async def test_without_a_reference_the_default_model_is_meant() -> None:
    assert (await catalog_of(SOURCE, default="big").resolve(None)).name == "big"
    assert (await catalog_of(SOURCE, aliases={"mine": "big"}, default="mine").resolve(None)).name == "big"


async def test_an_alias_of_an_alias_is_followed_and_goes_before_a_name() -> None:
    catalog = catalog_of(SOURCE, aliases={"a": "b", "b": "big", "tiny": "big"})
    assert (await catalog.resolve("a")).name == "big"
    assert (await catalog.resolve("tiny")).name == "big"


async def test_a_circle_of_aliases_ends() -> None:
    assert (await _refused(catalog_of(SOURCE, aliases={"a": "b", "b": "a"}), "a")).code == "bad_reference"


async def test_a_path_is_a_model_of_its_own() -> None:
    entry = await catalog_of(SOURCE).resolve("/some//folder/../model.gguf")
    assert (entry.name, entry.files[0].path) == ("/some/model.gguf", "/some/model.gguf")


@pytest.mark.parametrize("reference", ["./model.gguf", "folder/model.gguf", "../x"])
async def test_a_relative_path_is_refused(reference: str) -> None:
    assert (await _refused(catalog_of(SOURCE), reference)).code == "bad_reference"


async def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert (await catalog_of(SOURCE).resolve("~/m.gguf")).name == "/home/somebody/m.gguf"


async def test_a_home_that_nobody_has_is_refused() -> None:
    assert (await _refused(catalog_of(SOURCE), "~no-such-user-at-all/m.gguf")).code == "bad_reference"


async def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    refused = await _refused(catalog_of(SOURCE), "tinny")
    assert refused.code == "model_not_found"
    assert "tiny" in (refused.hint or "")


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (LookupError("one:x names nothing"), "model_not_found"),
        (OSError(5, "Input/output error"), "model_unreadable"),
        (ValueError("embedded null byte"), "model_not_found"),
        (RuntimeError("a bug"), "model_not_found"),
    ],
)
async def test_a_source_that_fails_is_a_refusal(failure: Exception, code: str) -> None:
    assert (await _refused(catalog_of(StandInSource("one", failure=failure)), "x")).code == code


@pytest.mark.parametrize("failure", [OSError(13, "Permission denied"), RuntimeError("a bug")])
async def test_a_source_that_fails_hides_no_other_ones_models(failure: Exception) -> None:
    catalog = catalog_of(StandInSource("bad", failure=failure), SOURCE)
    assert await _names(catalog) == ["big", "tiny"]


async def test_a_file_whose_name_is_no_text_hides_no_others() -> None:
    source = StandInSource("one", [an_entry("/m/\udcff.gguf"), *SOURCE.entries])
    assert await _names(catalog_of(source)) == ["big", "tiny"]


async def test_own_names_are_those_that_lead_somewhere() -> None:
    aliases = {"a": "big", "b": "big", "c": "nothing", "d": "~no-such-user-at-all/x", "e": "e"}
    names = await catalog_of(SOURCE, aliases=aliases, default="a").own_names()
    assert (names.default, names.aliases) == ("big", {"big": ("a", "b")})


@pytest.mark.parametrize(
    ("reference", "expected"),
    [("/a", True), ("~/a", True), ("./a", True), ("a/b", True), ("tiny", False), ("hf:a/b", False), ("a.gguf", False)],
)
async def test_what_looks_like_a_path(reference: str, expected: bool) -> None:
    assert looks_like_a_path(reference) is expected
