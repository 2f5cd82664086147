"""Which tokens the next step evaluates. Pure: sequences in, numbers of tokens out.

There is no prompt mode and no decode mode: a sequence has tokens left to evaluate, and a step takes so many of each.
Prompts and single tokens go in separate calls, because a call that mixes them costs more than the two. A running answer
stands still while a chunk of a prompt is evaluated, so chunks are cut to the pause that its class allows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from enclaved.plugin.engine import SequenceId
from enclaved.worker.pace import Pace

PAUSE_SECONDS: Mapping[str, float] = {"interactive": 0.1}
"""By class: how long a prompt of another may hold up an answer between two tokens."""
PAUSE_SECONDS_ELSE = 0.25
ALONE_SECONDS = 0.5
"""How long a chunk may take while no answer is being made: so long a newcomer waits to be noticed."""
SMALLEST_CHUNKS = 4
"""The smallest chunk beside an interactive answer is the efficient size divided by this."""
RANKS: Mapping[str, int] = {"interactive": 0, "normal": 1, "background": 2}
"""The order in which prompts are evaluated, by class."""


@dataclass(frozen=True)
class Pending:
    """A sequence that is not finished: how many tokens of it the engine has not evaluated yet."""

    sequence: SequenceId
    tokens_left: int
    """1 for a sequence that is being decoded; more: a prompt."""
    paused: bool = False
    priority: str = "normal"


@dataclass(frozen=True)
class Share:
    """So many tokens of a sequence, in the order it holds them."""

    sequence: SequenceId
    tokens: int


@dataclass(frozen=True)
class Plan:
    """The calls of one step, each within the engine's batch."""

    calls: tuple[tuple[Share, ...], ...]


def plan(pending: Sequence[Pending], batch_tokens: int, pace: Pace) -> Plan:
    """A step: all decoding sequences (in as many calls as the batch needs), then a chunk of the first prompt.

    The first prompt by class, then in the order of `pending`, goes first, so that its answer starts soonest. Further
    ones join it where all of them are so short that together they still make no more than an efficient chunk.
    """
    running = [p for p in pending if not p.paused]
    decoding = [p for p in running if p.tokens_left == 1]
    calls = [
        tuple(Share(p.sequence, 1) for p in decoding[start : start + batch_tokens])
        for start in range(0, len(decoding), batch_tokens)
    ]
    prompts = sorted((p for p in running if p.tokens_left > 1), key=lambda p: RANKS.get(p.priority, 1))
    if prompts:
        size = chunk_size({p.priority for p in decoding}, batch_tokens, pace)
        if not decoding and prompts[0].tokens_left < size + pace.chunk_tokens:
            size = batch_tokens  # a small rest would cost nearly as much by itself as with this chunk
        chunk = [Share(prompts[0].sequence, min(prompts[0].tokens_left, size))]
        room = min(size, pace.chunk_tokens) - prompts[0].tokens_left
        for prompt in prompts[1:]:
            if prompt.tokens_left > room:
                break
            chunk.append(Share(prompt.sequence, prompt.tokens_left))
            room -= prompt.tokens_left
        calls.append(tuple(chunk))
    return Plan(tuple(calls))


def chunk_size(waiting: set[str], batch_tokens: int, pace: Pace) -> int:
    """Tokens of a prompt to evaluate at once while answers of these classes wait.

    Multiples of the efficient size, as many as the pause allows beside a decoding step, and at least one; beside an
    interactive answer, as long as that would take too long, down to a quarter of it.
    """
    unit = min(pace.chunk_tokens, batch_tokens)
    if not waiting:
        seconds = ALONE_SECONDS
        # Until a chunk has been measured: two of them, which is quick to learn from.
        most = batch_tokens if pace.is_known else min(2 * unit, batch_tokens)
    else:
        seconds = min(PAUSE_SECONDS.get(name, PAUSE_SECONDS_ELSE) for name in waiting) - pace.decode_seconds
        most = batch_tokens if pace.is_known else unit
    for tokens in range(most - most % unit, unit - 1, -unit):
        if pace.chunk_seconds(tokens) <= seconds:
            return tokens
    if "interactive" not in waiting:
        return unit
    smallest = max(1, unit // SMALLEST_CHUNKS)
    for tokens in range(unit - smallest, smallest, -smallest):
        if pace.chunk_seconds(tokens) <= seconds:
            return tokens
    return smallest
