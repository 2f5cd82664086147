"""What a step evaluates: within the batch, fair to all, and never nothing while something can run."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from enclaved.plugin.engine import SequenceId
from enclaved.worker.pace import Pace
from enclaved.worker.plan import (
    ALONE_SECONDS,
    PAUSE_SECONDS,
    PAUSE_SECONDS_ELSE,
    RANKS,
    SMALLEST_CHUNKS,
    Pending,
    Share,
    chunk_size,
    plan,
)

BATCHES = st.integers(1, 600)
CLASSES = tuple(RANKS)


@st.composite
def paces(draw: st.DrawFn) -> Pace:
    """A machine of any speed, as far as it has been measured."""
    pace = Pace(draw(st.sampled_from([16, 64])))
    seconds = st.floats(1e-6, 1)
    if draw(st.booleans()):
        pace.decoded(draw(seconds))
    if draw(st.booleans()):
        pace.evaluated(pace.chunk_tokens, pace.chunk_tokens * draw(seconds))
    if draw(st.booleans()):
        pace.evaluated(pace.chunk_tokens // 2, pace.chunk_tokens * draw(seconds))
    return pace


@st.composite
def pendings(draw: st.DrawFn) -> list[Pending]:
    count = draw(st.integers(0, 12))
    lengths = st.integers(1, 3) | st.integers(1, 2000)
    return [
        Pending(SequenceId(number), draw(lengths), draw(st.booleans()), draw(st.sampled_from(CLASSES)))
        for number in range(count)
    ]


@given(pendings(), BATCHES, paces())
def test_no_call_is_larger_than_the_batch_or_empty(pending: list[Pending], batch: int, pace: Pace) -> None:
    for call in plan(pending, batch, pace).calls:
        assert 1 <= sum(share.tokens for share in call) <= batch


@given(pendings(), BATCHES, paces())
def test_a_sequence_has_at_most_one_share_and_no_more_than_it_has_left(
    pending: list[Pending], batch: int, pace: Pace
) -> None:
    left = {p.sequence: p.tokens_left for p in pending}
    shares = [share for call in plan(pending, batch, pace).calls for share in call]
    assert all(count == 1 for count in Counter(share.sequence for share in shares).values())
    assert all(1 <= share.tokens <= left[share.sequence] for share in shares)


@given(pendings(), BATCHES, paces())
def test_paused_sequences_never_run(pending: list[Pending], batch: int, pace: Pace) -> None:
    paused = {p.sequence for p in pending if p.paused}
    assert not paused & {share.sequence for call in plan(pending, batch, pace).calls for share in call}


@given(pendings(), BATCHES, paces())
def test_a_step_makes_progress_whenever_something_can_run(pending: list[Pending], batch: int, pace: Pace) -> None:
    assert bool(plan(pending, batch, pace).calls) == any(not p.paused for p in pending)


@given(pendings(), BATCHES, paces())
def test_every_decoding_sequence_gets_its_token_in_every_step(pending: list[Pending], batch: int, pace: Pace) -> None:
    decoding = {p.sequence for p in pending if p.tokens_left == 1 and not p.paused}
    assert decoding <= {share.sequence for call in plan(pending, batch, pace).calls for share in call}


@given(pendings(), BATCHES, paces())
def test_prompts_and_decoding_never_share_a_call(pending: list[Pending], batch: int, pace: Pace) -> None:
    left = {p.sequence: p.tokens_left for p in pending}
    for call in plan(pending, batch, pace).calls:
        assert len({left[share.sequence] == 1 for share in call}) == 1


@given(pendings(), BATCHES, paces())
def test_prompts_that_go_together_are_whole_and_make_no_more_than_an_efficient_chunk(
    pending: list[Pending], batch: int, pace: Pace
) -> None:
    left = {p.sequence: p.tokens_left for p in pending}
    for call in plan(pending, batch, pace).calls:
        if len(call) > 1 and left[call[0].sequence] > 1:
            assert all(share.tokens == left[share.sequence] for share in call)
            assert sum(share.tokens for share in call) <= pace.chunk_tokens


@given(pendings(), BATCHES, paces())
def test_the_first_prompt_of_the_most_urgent_class_goes_first(pending: list[Pending], batch: int, pace: Pace) -> None:
    prompts = [p for p in pending if p.tokens_left > 1 and not p.paused]
    if prompts:
        urgent = min(RANKS[p.priority] for p in prompts)
        first = next(p for p in prompts if RANKS[p.priority] == urgent)
        assert plan(pending, batch, pace).calls[-1][0].sequence == first.sequence


@given(st.sets(st.sampled_from(CLASSES), min_size=1), BATCHES, paces())
def test_a_chunk_holds_an_answer_up_for_its_pause_or_is_the_smallest(waiting: set[str], batch: int, pace: Pace) -> None:
    size = chunk_size(waiting, batch, pace)
    pause = min(PAUSE_SECONDS.get(name, PAUSE_SECONDS_ELSE) for name in waiting)
    unit = min(pace.chunk_tokens, batch)
    smallest = max(1, unit // SMALLEST_CHUNKS) if "interactive" in waiting else unit
    assert size == smallest or pace.decode_seconds + pace.chunk_seconds(size) <= pause
    assert smallest <= size <= batch
    assert size % unit == 0 or "interactive" in waiting


@given(st.sets(st.sampled_from(CLASSES)), BATCHES, paces())
def test_a_chunk_is_as_large_as_the_pause_allows(waiting: set[str], batch: int, pace: Pace) -> None:
    size = chunk_size(waiting, batch, pace)
    unit = min(pace.chunk_tokens, batch)
    larger = size + unit
    if size % unit or larger > batch or not pace.is_known:
        return
    pause = min((PAUSE_SECONDS.get(name, PAUSE_SECONDS_ELSE) for name in waiting), default=ALONE_SECONDS)
    room = pause - pace.decode_seconds if waiting else pause
    assert pace.chunk_seconds(larger) > room


def test_no_small_rest_is_left_while_nobody_waits() -> None:
    pace = Pace(64)
    pace.evaluated(64, 64 * 0.006)
    prompt = Pending(SequenceId(0), 101)
    assert chunk_size(set(), 512, pace) == 64
    assert plan([prompt], 512, pace).calls == ((Share(SequenceId(0), 101),),)
    assert plan([prompt, Pending(SequenceId(1), 1)], 512, pace).calls[-1] == (Share(SequenceId(0), 64),)
    assert plan([Pending(SequenceId(0), 128)], 512, pace).calls == ((Share(SequenceId(0), 64),),)


def test_on_a_machine_of_known_speed() -> None:
    """0.4 billion parameters on two cores: 3.5 ms a token from 64 on, 6 ms below, 27 ms a step of four answers."""
    pace = Pace(64)
    pace.decoded(0.027)
    pace.evaluated(64, 64 * 0.0035)
    pace.evaluated(16, 16 * 0.006)
    assert chunk_size({"normal"}, 512, pace) == 64
    assert chunk_size({"background"}, 512, pace) == 64
    assert chunk_size({"normal", "interactive"}, 512, pace) == 16
    assert chunk_size(set(), 512, pace) == 128
    pace.evaluated(512, 512 * 0.00001)
    pace.evaluated(512, 512 * 0.00001)
    assert chunk_size({"normal"}, 512, pace) == 192
    assert chunk_size({"interactive"}, 512, pace) == 64


@given(pendings(), BATCHES, paces())
def test_steps_come_to_an_end(pending: list[Pending], batch: int, pace: Pace) -> None:
    left = {p.sequence: p.tokens_left for p in pending if not p.paused}
    total = sum(left.values())
    for _ in range(total):
        shares = [
            share for call in plan([Pending(s, n) for s, n in left.items() if n], batch, pace).calls for share in call
        ]
        for share in shares:
            left[share.sequence] -= share.tokens
        if not any(left.values()):
            break
    assert not any(left.values())
