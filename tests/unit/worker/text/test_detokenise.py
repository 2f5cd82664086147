"""Bytes become the same text however they are cut, and no character comes in parts."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from enclaved.worker.text.detokenise import Detokeniser

CUTS = st.lists(st.integers(0, 200), max_size=12)


def _pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(places)]


def _texts(pieces: list[bytes]) -> list[str]:
    detokeniser = Detokeniser()
    return [*[detokeniser.feed(piece) for piece in pieces], detokeniser.end()]


@given(st.text(max_size=60), CUTS)
def test_any_cut_of_a_text_gives_that_text(text: str, cuts: list[int]) -> None:
    assert "".join(_texts(_pieces(text.encode(), cuts))) == text


@given(st.text(max_size=60), CUTS)
def test_a_whole_text_never_shows_a_replacement(text: str, cuts: list[int]) -> None:
    shown = _texts(_pieces(text.encode(), cuts))
    assert "".join(shown).count("\ufffd") == text.count("\ufffd")
    assert shown[-1] == ""


@given(st.binary(max_size=60), CUTS)
def test_any_cut_of_any_bytes_gives_what_the_whole_gives(data: bytes, cuts: list[int]) -> None:
    assert "".join(_texts(_pieces(data, cuts))) == data.decode("utf-8", "replace")


@given(st.text(max_size=40))
def test_characters_come_as_soon_as_they_are_whole(text: str) -> None:
    detokeniser = Detokeniser()
    for character in text:
        *beginning, last = character.encode()
        assert [detokeniser.feed(bytes([byte])) for byte in beginning] == [""] * len(beginning)
        assert detokeniser.feed(bytes([last])) == character


def test_an_end_inside_a_character_is_one_replacement() -> None:
    assert _texts(["€".encode()[:2]]) == ["", "\ufffd"]
