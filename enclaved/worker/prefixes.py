"""Which of the tokens that lie in the engine's cache a new prompt can begin with. Pure: tokens in, a decision out.

Nothing here knows who asked: all requests of a daemon are its one user's.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from enclaved.plugin.engine import SequenceId, Token

SMALL_REST = 16
"""A sequence at rest whose last tokens, no more than these, do not fit is taken over: little is lost with them."""
EVICTED_MAX = 64
"""Prompts remembered after they had to go, to be able to say so."""


@dataclass(frozen=True)
class Resident:
    """A sequence that holds tokens."""

    sequence: SequenceId
    tokens: Sequence[Token]
    length: int
    """How many of the tokens are in the cache, and are what an evaluation of the prompt would have put there."""
    is_live: bool
    """Whether a request works with it: then it can be shared from, not taken over."""
    used: int = 0
    """When it was last of use, in the order of a counter."""


@dataclass(frozen=True)
class Seat:
    """Where a prompt goes, and how many of its tokens are there already."""

    sequence: SequenceId
    cached: int
    source: SequenceId | None = None
    """Whose first `cached` tokens it gets; None: they are its own, or there are none."""
    evicted: SequenceId | None = None
    """The sequence at rest, `sequence` itself, that is emptied first."""
    differs_at: int | None = None
    """Where the prompt and the nearest of the residents part; None when nothing is resident."""


def common_length(a: Sequence[Token], b: Sequence[Token], limit: int) -> int:
    """How many tokens both begin with alike, `limit` at most."""
    limit = min(limit, len(a), len(b))
    if a[:limit] == b[:limit]:
        return limit
    low, high = 0, limit  # alike up to low, not up to high
    while high - low > 1:
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low


def seat(
    prompt: Sequence[Token], residents: Sequence[Resident], free: Sequence[SequenceId], share_tokens: int | None
) -> Seat | None:
    """The sequence for a prompt; None when all are live. `share_tokens`: from how many on a common beginning is worth
    sharing; None where sequences cannot share.

    The last token of the prompt is never taken from the cache: its logits are wanted. The longest common beginning is
    used, in place where nothing is lost, else shared into an empty sequence; for want of one the sequence at rest that
    was of no use for longest is emptied.
    """
    lengths = {r.sequence: common_length(prompt, r.tokens, min(r.length, len(prompt) - 1)) for r in residents}
    best = max(residents, key=lambda r: (lengths[r.sequence], not r.is_live, r.used), default=None)
    resting = sorted((r for r in residents if not r.is_live), key=lambda r: r.used)
    if best is None:
        return Seat(free[-1], 0) if free else None
    cached = lengths[best.sequence]
    small = SMALL_REST if share_tokens is None else max(SMALL_REST, share_tokens)
    if not best.is_live and best.length - cached <= min(small, cached):
        return Seat(best.sequence, cached, differs_at=cached)
    empty = free[-1] if free else None
    others = [r.sequence for r in resting if r is not best]
    if share_tokens is not None and cached >= share_tokens and (empty is not None or others):
        target = others[0] if empty is None else empty
        evicted = target if empty is None else None
        return Seat(target, cached, source=best.sequence, evicted=evicted, differs_at=cached)
    if empty is not None:
        return Seat(empty, 0, differs_at=cached)
    if not resting:
        return None
    # The one that was of no use for longest, unless the nearest can do with its place.
    victim = best if not best.is_live and cached >= (share_tokens or 1) else resting[0]
    return Seat(victim.sequence, lengths[victim.sequence], differs_at=cached)


def is_worth_waiting(
    prompt: Sequence[Token], beginnings: Iterable[tuple[Sequence[Token], int]], share_tokens: int
) -> bool:
    """Whether another prompt that is being evaluated, given with how much of it is, will soon hold more of this one's
    beginning than it does now, so that the two need not both evaluate it."""
    return any(
        common_length(prompt, tokens, len(prompt) - 1) - evaluated >= share_tokens for tokens, evaluated in beginnings
    )


class Evicted:
    """What lay in the cache before and had to go. Holds token ids, so it can tell how much of a prompt that was."""

    def __init__(self) -> None:
        self._prompts: deque[array[int]] = deque(maxlen=EVICTED_MAX)

    def add(self, tokens: Sequence[Token]) -> None:
        """These tokens are in the cache no more."""
        self._prompts.append(array("i", tokens))

    def common_length(self, prompt: Sequence[Token]) -> int:
        """How much of a prompt's beginning lay in the cache once."""
        asked = array("i", prompt)
        return max((common_length(asked, known, len(asked)) for known in self._prompts), default=0)  # pyright: ignore[reportArgumentType] - arrays are sequences of the same integers


def uncached_reason(
    prompt: Sequence[Token], found: Seat, evicted_length: int, *, is_first: bool, reloaded: bool, text: str
) -> str | None:
    """Why the rest of a prompt has to be evaluated, for a person; None when that is its last token only.

    `text`: of the prompt's token at `found.differs_at`. `is_first`: no prompt was evaluated before.
    """
    rest = len(prompt) - found.cached
    if rest <= 1:
        return None
    if evicted_length > (found.differs_at or 0) and evicted_length > found.cached:
        return f"evicted: {evicted_length:,} of its tokens were cached until other prompts needed their room"
    if is_first:
        return "model reloaded: its cache is empty" if reloaded else "the model was just loaded: its cache is empty"
    if found.differs_at is None:
        return "nothing is cached"
    where = f"token {found.differs_at:,} ({text!r}) is the first that differs from what is cached"
    if found.cached < found.differs_at:
        return f"{where}; too little is alike to be worth sharing"
    return where
