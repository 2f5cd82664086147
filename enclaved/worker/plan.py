"""Which tokens the next step evaluates. Pure: sequences in, numbers of tokens out.

There is no prompt mode and no decode mode: a sequence has tokens left to evaluate, and a step takes so many of each.
Prompts and single tokens go in separate calls, because a call that mixes them costs more than the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from enclaved.plugin.engine import SequenceId

CHUNK_BESIDE_OTHERS = 128
"""Tokens of a prompt that are evaluated at once while others wait for their next token. On the machines measured a
token costs the same from 64 up and double below, so this keeps others waiting as briefly as is cheap."""


@dataclass(frozen=True)
class Pending:
    """A sequence that is not finished: how many tokens of it the engine has not evaluated yet."""

    sequence: SequenceId
    tokens_left: int
    """1 for a sequence that is being decoded; more: a prompt."""
    paused: bool = False


@dataclass(frozen=True)
class Share:
    """So many tokens of a sequence, in the order it holds them."""

    sequence: SequenceId
    tokens: int


@dataclass(frozen=True)
class Plan:
    """The calls of one step, each within the engine's batch."""

    calls: tuple[tuple[Share, ...], ...]


def plan(pending: Sequence[Pending], batch_tokens: int) -> Plan:
    """A step: all decoding sequences (in as many calls as the batch needs), then a chunk of the first prompt.

    The first prompt in the order of `pending` goes first and alone, so that its answer starts soonest; with nobody
    decoding its chunk fills the batch.
    """
    running = [p for p in pending if not p.paused]
    decoding = [Share(p.sequence, 1) for p in running if p.tokens_left == 1]
    calls = [tuple(decoding[start : start + batch_tokens]) for start in range(0, len(decoding), batch_tokens)]
    prompt = next((p for p in running if p.tokens_left > 1), None)
    if prompt is not None:
        chunk = min(prompt.tokens_left, CHUNK_BESIDE_OTHERS if decoding else batch_tokens, batch_tokens)
        calls.append((Share(prompt.sequence, chunk),))
    return Plan(tuple(calls))
