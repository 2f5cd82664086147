"""What is left out of a prompt or a context that is too long."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from enclaved.worker.overflow import ROOM_PART, keep_max, shifting, truncation

CONTEXTS = st.integers(4, 5000)


@given(st.data(), CONTEXTS, st.none() | st.integers(1, 10_000))
def test_a_truncated_prompt_fits_keeps_its_beginning_and_its_end(
    data: st.DataObject, context: int, max_tokens: int | None
) -> None:
    keep = data.draw(st.integers(0, keep_max(context)))
    prompt = list(range(data.draw(st.integers(1, 3 * context))))
    cut = truncation(len(prompt), context, keep, max_tokens)
    if cut is None:
        assert len(prompt) < context
        return
    assert len(prompt) >= context
    left = prompt[: cut.start] + prompt[cut.start + cut.count :]
    assert left[:keep] == prompt[:keep]
    assert left[-1] == prompt[-1]
    assert context - context // ROOM_PART - 1 <= len(left) < context
    if max_tokens is not None and max_tokens <= context // ROOM_PART:
        assert len(left) + max_tokens == context


@given(st.data(), CONTEXTS)
def test_a_shift_leaves_the_beginning_and_at_least_half_of_the_rest(data: st.DataObject, context: int) -> None:
    keep = data.draw(st.integers(0, keep_max(context)))
    cut = shifting(context, keep)
    assert cut.start == keep
    assert 1 <= cut.count <= (context - keep + 1) // 2
