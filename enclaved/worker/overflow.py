"""What to do about a prompt, or an answer, that the context does not hold. Pure: lengths in, cuts out.

Nothing is cut unless the request allows it, and whatever is cut is counted for the receipt.
"""

from __future__ import annotations

from dataclasses import dataclass

ROOM_PART = 4
"""A prompt that is truncated leaves this part of the context to its answer, unless the answer may take less."""


@dataclass(frozen=True)
class Cut:
    """`count` tokens from position `start` are left out."""

    start: int
    count: int


def truncation(prompt_tokens: int, context: int, keep: int, max_tokens: int | None) -> Cut | None:
    """What to leave out of a prompt so that it and its answer fit; None for one that fits.

    A prompt fits when one token of context is left for the answer. `keep`: tokens at the beginning that stay, fewer
    than the context's half. `max_tokens`: of the answer, None when it has no limit of its own.
    """
    if prompt_tokens < context:
        return None
    room = max(1, context // ROOM_PART)
    if max_tokens is not None:
        room = max(1, min(room, max_tokens))
    return Cut(keep, prompt_tokens - (context - room))


def shifting(held_tokens: int, keep: int) -> Cut:
    """What to drop from a full context so that the answer can go on: the oldest half of what follows `keep`."""
    return Cut(keep, max(1, (held_tokens - keep) // 2))


def keep_max(context: int) -> int:
    """The most tokens that a request may want kept at the beginning."""
    return max(0, context // 2 - 1)
