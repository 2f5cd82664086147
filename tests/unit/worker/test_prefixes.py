"""Where a prompt goes: with as many of its tokens from the cache as can be had, and nothing of use thrown away."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from enclaved.plugin.engine import SequenceId, Token
from enclaved.worker.prefixes import (
    EVICTED_MAX,
    SMALL_REST,
    Evicted,
    Resident,
    Seat,
    common_length,
    is_worth_waiting,
    seat,
    uncached_reason,
)

TOKENS = st.lists(st.integers(0, 2).map(Token), max_size=40)


def tokens(text: str) -> list[Token]:
    return [Token(ord(character)) for character in text]


def resident(number: int, text: str, *, live: bool = False, used: int = 0) -> Resident:
    return Resident(SequenceId(number), tokens(text), len(text), live, used)


def free(*numbers: int) -> list[SequenceId]:
    return [SequenceId(number) for number in numbers]


@given(TOKENS, TOKENS, st.integers(0, 50))
def test_the_common_length_is_where_they_part(a: list[Token], b: list[Token], limit: int) -> None:
    expected = 0
    while expected < min(len(a), len(b), limit) and a[expected] == b[expected]:
        expected += 1
    assert common_length(a, b, limit) == expected


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[Token], list[Resident], list[SequenceId], int | None]:
    prompt = draw(TOKENS.filter(bool))
    count = draw(st.integers(0, 5))
    residents: list[Resident] = []
    for number in range(count):
        held = draw(TOKENS.filter(bool) | st.just(prompt) | st.integers(1, len(prompt)).map(lambda n: prompt[:n]))
        length = draw(st.integers(0, len(held)))
        residents.append(Resident(SequenceId(number), held, length, draw(st.booleans()), draw(st.integers(0, 9))))
    empty = [SequenceId(count + number) for number in range(draw(st.integers(0, 2)))]
    return prompt, residents, empty, draw(st.none() | st.integers(1, 20))


@given(situations())
def test_a_seat_never_promises_what_is_not_there(
    situation: tuple[list[Token], list[Resident], list[SequenceId], int | None],
) -> None:
    prompt, residents, empty, share_tokens = situation
    found = seat(prompt, residents, empty, share_tokens)
    by_sequence = {each.sequence: each for each in residents}
    if found is None:
        assert not empty
        assert all(each.is_live for each in residents)
        return
    assert 0 <= found.cached < len(prompt)
    mine = by_sequence.get(found.sequence)
    assert mine is None or not mine.is_live
    assert (mine is None) == (found.sequence in empty)
    if found.source is not None:
        assert share_tokens is not None
        assert found.cached >= share_tokens
        assert found.source != found.sequence
        assert mine is None or found.evicted == found.sequence
        mine = by_sequence[found.source]
    if found.cached:
        assert mine is not None
        assert found.cached <= mine.length
        assert list(mine.tokens[: found.cached]) == prompt[: found.cached]


@given(situations())
def test_the_longest_common_beginning_is_used_where_sequences_share(
    situation: tuple[list[Token], list[Resident], list[SequenceId], int | None],
) -> None:
    prompt, residents, empty, _ = situation
    found = seat(prompt, residents, empty, 1)
    best = max((common_length(prompt, r.tokens, min(r.length, len(prompt) - 1)) for r in residents), default=0)
    if found is None:
        return
    a_source_is_free_to_share = bool(empty) or sum(not r.is_live for r in residents) > 1
    if a_source_is_free_to_share:
        assert found.cached == best


def test_a_conversation_goes_on_in_its_own_sequence() -> None:
    found = seat(tokens("hello you. and now"), [resident(3, "hello you.", used=5)], free(1), 1)
    assert found == Seat(SequenceId(3), 10, differs_at=10)


def test_a_shared_beginning_leaves_the_other_prompt_whole() -> None:
    system = "s" * 50
    found = seat(tokens(system + "mine"), [resident(0, system + "x" * 40)], free(1), 1)
    assert found == Seat(SequenceId(1), 50, source=SequenceId(0), differs_at=50)


def test_a_live_sequence_is_shared_and_never_taken() -> None:
    found = seat(tokens("abcdef"), [resident(0, "abcd", live=True)], free(1), 1)
    assert found == Seat(SequenceId(1), 4, source=SequenceId(0), differs_at=4)
    assert seat(tokens("abcdef"), [resident(0, "abcd", live=True)], free(1), None) == Seat(
        SequenceId(1), 0, differs_at=4
    )
    assert seat(tokens("abcdef"), [resident(0, "abcd", live=True)], [], 1) is None


def test_for_want_of_an_empty_sequence_the_longest_unused_goes() -> None:
    system = "s" * 50
    residents = [
        resident(0, "zzzz" * 9, used=3),
        resident(1, "yyyy" * 9, used=1),
        resident(2, system + "x" * 40, used=2),
    ]
    assert seat(tokens(system + "mine"), residents, [], 1) == Seat(
        SequenceId(1), 50, source=SequenceId(2), evicted=SequenceId(1), differs_at=50
    )
    assert seat(tokens("other"), residents, [], 1) == Seat(SequenceId(1), 0, differs_at=0)


def test_where_sequences_cannot_share_the_nearest_at_rest_is_cut_back() -> None:
    residents = [resident(0, "abc" + "x" * 40, used=9), resident(1, "zzz", used=1)]
    assert seat(tokens("abcd"), residents, [], None) == Seat(SequenceId(0), 3, differs_at=3)


def test_the_last_token_is_always_evaluated() -> None:
    found = seat(tokens("abc"), [resident(0, "abcd")], free(1), 1)
    assert found == Seat(SequenceId(0), 2, differs_at=2)


def test_a_prompt_waits_for_one_that_is_on_its_way_to_the_same_beginning() -> None:
    other = tokens("s" * 50 + "other")
    assert is_worth_waiting(tokens("s" * 50 + "mine"), [(other, 10)], 16)
    assert not is_worth_waiting(tokens("s" * 50 + "mine"), [(other, 40)], 16)
    assert not is_worth_waiting(tokens("mine"), [(other, 0)], 1)


def test_the_reason_names_the_first_token_that_differs() -> None:
    found = seat(tokens("abcX"), [resident(0, "abcdef" * SMALL_REST)], free(1), 1)
    assert found is not None
    reason = uncached_reason(tokens("abcXY"), found, 0, is_first=False, reloaded=False, text="X")
    assert reason == "token 3 ('X') is the first that differs from what is cached"


def test_the_reason_tells_an_evicted_prompt_from_one_never_seen() -> None:
    evicted = Evicted()
    evicted.add(tokens("abcdef"))
    assert evicted.common_length(tokens("abcdxx")) == 4
    nothing = Seat(SequenceId(0), 0)
    assert "evicted: 4 of" in str(
        uncached_reason(tokens("abcdxx"), nothing, 4, is_first=False, reloaded=False, text="a")
    )
    assert uncached_reason(tokens("ab"), nothing, 0, is_first=False, reloaded=False, text="") == "nothing is cached"
    assert "reloaded" in str(uncached_reason(tokens("ab"), nothing, 0, is_first=True, reloaded=True, text=""))
    assert "just loaded" in str(uncached_reason(tokens("ab"), nothing, 0, is_first=True, reloaded=False, text=""))


def test_there_is_no_reason_when_only_the_last_token_is_evaluated() -> None:
    assert uncached_reason(tokens("ab"), Seat(SequenceId(0), 1), 0, is_first=False, reloaded=False, text="b") is None


def test_only_the_latest_evicted_prompts_are_remembered() -> None:
    evicted = Evicted()
    evicted.add(tokens("first"))
    for _ in range(EVICTED_MAX):
        evicted.add(tokens("x"))
    assert evicted.common_length(tokens("first")) == 0
