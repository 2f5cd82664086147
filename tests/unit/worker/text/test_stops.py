"""Stop strings end the text before them, however it is cut, and no part of one is ever shown."""

from __future__ import annotations

import itertools

from hypothesis import example, given
from hypothesis import strategies as st

from enclaved.worker.text.stops import StopScanner

SMALL = st.text("ab", max_size=30)
STOPS = st.lists(st.text("ab", min_size=1, max_size=5), max_size=4)
CUTS = st.lists(st.integers(0, 30), max_size=10)


def _pieces(text: str, cuts: list[int]) -> list[str]:
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(places)]


def _scan(pieces: list[str], stops: list[str]) -> tuple[list[str], bool]:
    """What was shown after each piece and at the end, and whether it stopped."""
    scanner = StopScanner(stops)
    shown = [scanner.feed(piece) for piece in pieces]
    shown.append("" if scanner.stopped else scanner.end())
    return shown, scanner.stopped


def _expected(text: str, stops: list[str]) -> tuple[str, bool]:
    """Straight from the definition: the first prefix of the text that ends in a stop string, without it."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


@given(SMALL, STOPS, CUTS)
@example("aba", ["aba", "b"], [])
@example("babab", ["abab", "b"], [1, 2])
@example("aab", ["ab", "b"], [2])
def test_any_cut_shows_the_text_before_the_stop_string_that_is_complete_first(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    shown, stopped = _scan(_pieces(text, cuts), stops)
    assert ("".join(shown), stopped) == _expected(text, stops)


@given(SMALL, STOPS, CUTS, SMALL)
def test_what_was_shown_can_be_no_part_of_a_stop_string_whatever_follows(
    text: str, stops: list[str], cuts: list[int], following: str
) -> None:
    """At every moment: what stands is a beginning of what would stand at the end."""
    scanner = StopScanner(stops)
    so_far = "".join(scanner.feed(piece) for piece in _pieces(text, cuts))
    assert _expected(text + following, stops)[0].startswith(so_far)


@given(SMALL, STOPS, CUTS)
def test_no_more_is_held_back_than_may_become_a_stop_string(text: str, stops: list[str], cuts: list[int]) -> None:
    scanner = StopScanner(stops)
    so_far = "".join(scanner.feed(piece) for piece in _pieces(text, cuts))
    held = text[len(so_far) :]
    assert scanner.stopped or held == "" or any(stop.startswith(held) for stop in stops)


def test_nothing_is_shown_after_a_stop() -> None:
    scanner = StopScanner(["."])
    assert scanner.feed("one. two") == "one"
    assert scanner.feed("more") == ""
    assert scanner.end() == ""


def test_without_stop_strings_everything_is_shown_at_once() -> None:
    scanner = StopScanner([""])
    assert scanner.feed("text") == "text"
    assert not scanner.stopped


def test_of_two_stop_strings_the_one_that_is_complete_first_counts() -> None:
    for pieces in (["abcd"], ["abc", "d"], ["a", "b", "c", "d"]):
        shown, stopped = _scan(pieces, ["abcd", "bc"])
        assert ("".join(shown), stopped) == ("a", True)
