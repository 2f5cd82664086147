"""What a step evaluates: within the batch, fair to all, and never nothing while something can run."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from enclaved.plugin.engine import SequenceId
from enclaved.worker.plan import CHUNK_BESIDE_OTHERS, Pending, Share, plan

BATCHES = st.integers(1, 600)


@st.composite
def pendings(draw: st.DrawFn) -> list[Pending]:
    count = draw(st.integers(0, 12))
    lengths = st.integers(1, 3) | st.integers(1, 2000)
    return [Pending(SequenceId(number), draw(lengths), draw(st.booleans())) for number in range(count)]


@given(pendings(), BATCHES)
def test_no_call_is_larger_than_the_batch_or_empty(pending: list[Pending], batch: int) -> None:
    for call in plan(pending, batch).calls:
        assert 1 <= sum(share.tokens for share in call) <= batch


@given(pendings(), BATCHES)
def test_a_sequence_has_at_most_one_share_and_no_more_than_it_has_left(pending: list[Pending], batch: int) -> None:
    left = {p.sequence: p.tokens_left for p in pending}
    shares = [share for call in plan(pending, batch).calls for share in call]
    assert all(count == 1 for count in Counter(share.sequence for share in shares).values())
    assert all(1 <= share.tokens <= left[share.sequence] for share in shares)


@given(pendings(), BATCHES)
def test_paused_sequences_never_run(pending: list[Pending], batch: int) -> None:
    paused = {p.sequence for p in pending if p.paused}
    assert not paused & {share.sequence for call in plan(pending, batch).calls for share in call}


@given(pendings(), BATCHES)
def test_a_step_makes_progress_whenever_something_can_run(pending: list[Pending], batch: int) -> None:
    assert bool(plan(pending, batch).calls) == any(not p.paused for p in pending)


@given(pendings(), BATCHES)
def test_every_decoding_sequence_gets_its_token_in_every_step(pending: list[Pending], batch: int) -> None:
    decoding = {p.sequence for p in pending if p.tokens_left == 1 and not p.paused}
    assert decoding <= {share.sequence for call in plan(pending, batch).calls for share in call}


@given(pendings(), BATCHES)
def test_prompts_and_decoding_never_share_a_call(pending: list[Pending], batch: int) -> None:
    left = {p.sequence: p.tokens_left for p in pending}
    for call in plan(pending, batch).calls:
        kinds = {left[share.sequence] == 1 for share in call}
        assert len(kinds) == 1
        assert kinds == {True} or len(call) == 1


@given(pendings(), BATCHES)
def test_a_prompt_is_cut_smaller_while_others_wait_for_their_next_token(pending: list[Pending], batch: int) -> None:
    running = [p for p in pending if not p.paused]
    prompt = next((p for p in running if p.tokens_left > 1), None)
    if prompt is None:
        return
    most = min(batch, CHUNK_BESIDE_OTHERS) if any(p.tokens_left == 1 for p in running) else batch
    assert plan(pending, batch).calls[-1] == (Share(prompt.sequence, min(prompt.tokens_left, most)),)


@given(pendings(), BATCHES)
def test_steps_come_to_an_end(pending: list[Pending], batch: int) -> None:
    left = {p.sequence: p.tokens_left for p in pending if not p.paused}
    total = sum(left.values())
    for _ in range(total):
        shares = [share for call in plan([Pending(s, n) for s, n in left.items() if n], batch).calls for share in call]
        for share in shares:
            left[share.sequence] -= share.tokens
        if not any(left.values()):
            break
    assert not any(left.values())
