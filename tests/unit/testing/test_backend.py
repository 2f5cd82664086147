"""The kit for backends must catch what it promises to catch: each engine here breaks one rule."""

from __future__ import annotations

import dataclasses
import threading
from typing import TYPE_CHECKING

import pytest

from enclave_fake.engine import ByteVocabulary, FakeEngine
from enclave_fake.knobs import Knobs
from enclaved.plugin.engine import (
    EngineError,
    InterruptedStepError,
    MemoryUse,
    NoRoomError,
    Placement,
    Run,
    Sampled,
    SampleRow,
    Token,
)
from enclaved.testing import check_backend

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from enclaved.plugin.engine import SequenceId


def around(token: int) -> dict[Token, float]:
    return {Token(token): 0.7, Token(ord("x")): 0.2, Token(ord("y")): 0.1}


class IdsWrapAround(FakeEngine):
    def __init__(self, knobs: Knobs, placement: Placement) -> None:
        super().__init__(knobs, placement)

        class Vocabulary(ByteVocabulary):
            def piece(self, token: Token) -> bytes:
                return super().piece(Token(token % self.size))

        self.vocabulary = Vocabulary()


class TextLosesItsCapitals(FakeEngine):
    def __init__(self, knobs: Knobs, placement: Placement) -> None:
        super().__init__(knobs, placement)

        class Vocabulary(ByteVocabulary):
            def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[Token]:
                return super().encode(text.lower(), add_special=add_special, parse_special=parse_special)

        self.vocabulary = Vocabulary()


class UserTextBecomesMarkers(FakeEngine):
    def __init__(self, knobs: Knobs, placement: Placement) -> None:
        super().__init__(knobs, placement)

        class Vocabulary(ByteVocabulary):
            def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[Token]:
                return super().encode(text, add_special=add_special, parse_special=True)

        self.vocabulary = Vocabulary()


class VocabularyNeedsTheMainThread(FakeEngine):
    def __init__(self, knobs: Knobs, placement: Placement) -> None:
        super().__init__(knobs, placement)

        class Vocabulary(ByteVocabulary):
            def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[Token]:
                tokens = super().encode(text, add_special=add_special, parse_special=parse_special)
                return tokens if threading.current_thread() is threading.main_thread() else tokens[1:]

        self.vocabulary = Vocabulary()


class GivesMoreThanAsked(FakeEngine):
    def __init__(self, knobs: Knobs, placement: Placement) -> None:
        super().__init__(knobs, dataclasses.replace(placement, context=placement.context + 1))


class CountsOneTooMany(FakeEngine):
    def length(self, sequence: SequenceId) -> int:
        return super().length(sequence) + 1


class SamplesInItsOwnOrder(FakeEngine):
    def sample(self, rows: Sequence[SampleRow]) -> list[Sampled]:
        return super().sample(sorted(rows, key=lambda row: row.sequence))

    def _distribution(self, sequence: object) -> dict[Token, float]:
        return {Token(self._sequences.index(sequence)): 1.0}  # pyright: ignore[reportArgumentType]


class SamplesWithoutLogits(FakeEngine):
    def sample(self, rows: Sequence[SampleRow]) -> list[Sampled]:
        for row in rows:
            self._sequences[row.sequence].wants_logits = True
        return super().sample(rows)


class BeginsAnywhere(FakeEngine):
    def forward(self, runs: Sequence[Run]) -> None:
        super().forward([dataclasses.replace(run, position=self.length(run.sequence)) for run in runs])


class TakesAnyToken(FakeEngine):
    def forward(self, runs: Sequence[Run]) -> None:
        super().forward([dataclasses.replace(run, tokens=[Token(t % 256) for t in run.tokens]) for run in runs])


class KeepsHalfOfARefusedStep(FakeEngine):
    def forward(self, runs: Sequence[Run]) -> None:
        try:
            super().forward(runs)
        except EngineError:
            if len(runs) > 1:
                super().forward(runs[:1])
            raise


class TakesAnyBatch(FakeEngine):
    def __init__(self, knobs: Knobs, placement: Placement) -> None:
        super().__init__(knobs, placement)
        self.promised = self.capabilities
        self.capabilities = dataclasses.replace(self.capabilities, batch_tokens=100)

    def forward(self, runs: Sequence[Run]) -> None:
        promised, self.capabilities = self.capabilities, self.promised
        try:
            super().forward(runs)
        finally:
            self.capabilities = promised


class OverflowsItsContext(FakeEngine):
    def _check(self, runs: Sequence[Run]) -> None:
        try:
            super()._check(runs)
        except NoRoomError:
            return


class HasRoomForOneSequence(FakeEngine):
    def __init__(self, knobs: Knobs, placement: Placement) -> None:
        super().__init__(dataclasses.replace(knobs, cells=placement.context), placement)
        self.capabilities = dataclasses.replace(self.capabilities, cache_tokens=0)


class RemembersWhatItDropped(FakeEngine):
    remembered = 65

    def drop(self, sequence: SequenceId) -> None:
        tokens = self._at(sequence).tokens
        self.remembered = tokens[5] if len(tokens) > 5 else self.remembered
        super().drop(sequence)

    def _distribution(self, sequence: object) -> dict[Token, float]:
        return around(self.remembered)


class SaysItTrimmed(FakeEngine):
    def trim(self, sequence: SequenceId, length: int) -> bool:
        return True


class TrimsThoughItCannot(FakeEngine):
    def __init__(self, knobs: Knobs, placement: Placement) -> None:
        super().__init__(knobs, placement)
        self.capabilities = dataclasses.replace(self.capabilities, can_trim=False)


class DrawsUpsideDown(FakeEngine):
    def sample(self, rows: Sequence[SampleRow]) -> list[Sampled]:
        return super().sample([dataclasses.replace(row, draw=0.9999 - row.draw) for row in rows])


class ForgetsTheDraw(FakeEngine):
    def sample(self, rows: Sequence[SampleRow]) -> list[Sampled]:
        return super().sample([dataclasses.replace(row, draw=0.0) for row in rows])


class IgnoresTheFilters(FakeEngine):
    def sample(self, rows: Sequence[SampleRow]) -> list[Sampled]:
        free = [
            dataclasses.replace(row, sampling=dataclasses.replace(row.sampling, top_k=0, min_p=0.0, top_p=1.0))
            for row in rows
        ]
        return super().sample(free)


class SeesTheChunks(FakeEngine):
    chunks = 0

    def forward(self, runs: Sequence[Run]) -> None:
        super().forward(runs)
        self.chunks += sum(1 for run in runs if not run.wants_logits)

    def drop(self, sequence: SequenceId) -> None:
        super().drop(sequence)
        self.chunks = 0

    def _distribution(self, sequence: object) -> dict[Token, float]:
        return around(65 + min(self.chunks, 2))


class SeesItsNeighbours(FakeEngine):
    def _distribution(self, sequence: object) -> dict[Token, float]:
        return around(65 + sum(1 for other in self._sequences if other.tokens))


class StaysInterrupted(FakeEngine):
    stuck = False

    def interrupt(self) -> None:
        self.stuck = True

    def forward(self, runs: Sequence[Run]) -> None:
        if self.stuck:
            raise InterruptedStepError("interrupted")
        super().forward(runs)


class LosesItsWayWhenInterrupted(FakeEngine):
    lost = False

    def interrupt(self) -> None:
        self.lost = True

    def _distribution(self, sequence: object) -> dict[Token, float]:
        return around(65 if self.lost else 66)


class DependsOnItsThreads(FakeEngine):
    def _distribution(self, sequence: object) -> dict[Token, float]:
        return around(65 + self.threads)


class HoldsNothing(FakeEngine):
    def memory(self) -> MemoryUse:
        return MemoryUse()


class ClosesOnce(FakeEngine):
    def close(self) -> None:
        if self._closed:
            raise RuntimeError("double free")
        super().close()


@pytest.mark.parametrize(
    ("broken", "rule"),
    [
        (IdsWrapAround, "every other id raises ValueError"),
        (TextLosesItsCapitals, "text comes back"),
        (UserTextBecomesMarkers, "text comes back"),
        (VocabularyNeedsTheMainThread, "from any thread"),
        (GivesMoreThanAsked, "limits in force"),
        (CountsOneTooMany, "a sequence grows"),
        (SamplesInItsOwnOrder, "order of the rows"),
        (SamplesWithoutLogits, "only a sequence that wanted logits"),
        (BeginsAnywhere, "a run begins where its sequence ends"),
        (TakesAnyToken, "a bad run is refused"),
        (KeepsHalfOfARefusedStep, "a bad run is refused"),
        (TakesAnyBatch, "at most batch_tokens"),
        (OverflowsItsContext, "may hold its context at once, and no more"),
        (HasRoomForOneSequence, "may hold its context at once, and no more"),
        (RemembersWhatItDropped, "a dropped sequence"),
        (SaysItTrimmed, "can be cut back"),
        (TrimsThoughItCannot, "can be cut back"),
        (DrawsUpsideDown, "draw, filters and temperature"),
        (ForgetsTheDraw, "draw, filters and temperature"),
        (IgnoresTheFilters, "draw, filters and temperature"),
        (SeesTheChunks, "in chunks is the same prompt"),
        (SeesItsNeighbours, "in a batch answers as it does alone"),
        (StaysInterrupted, "ends at most one step"),
        (LosesItsWayWhenInterrupted, "breaks nothing"),
        (DependsOnItsThreads, "threads can be set"),
        (HoldsNothing, "memory is counted"),
        (ClosesOnce, "closing an engine twice"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_broken_rule_is_named(broken: Callable[[Knobs, Placement], FakeEngine], rule: str) -> None:
    with pytest.raises(AssertionError) as caught:
        check_backend(lambda placement: broken(Knobs(), placement))
    assert rule in str(caught.value)


def test_what_the_engine_cannot_do_is_skipped_with_a_reason() -> None:
    skipped = check_backend(lambda placement: FakeEngine(Knobs(trim=False, sequences=1), placement), exact=False)
    reasons = {skip.reason for skip in skipped}
    assert "the engine cannot trim" in reasons
    assert "the engine runs one sequence at a time" in reasons
    assert "the backend does not promise the same answer in a batch" in reasons


def test_every_engine_that_was_made_is_closed() -> None:
    made: list[FakeEngine] = []

    class Noted(FakeEngine):
        def __init__(self, knobs: Knobs, placement: Placement) -> None:
            super().__init__(knobs, placement)
            made.append(self)

        def memory(self) -> MemoryUse:
            raise RuntimeError("fails late")

    with pytest.raises(AssertionError, match="memory is counted: the engine raised RuntimeError: fails late"):
        check_backend(lambda placement: Noted(Knobs(), placement))
    assert len(made) == 2
    assert all(engine._closed for engine in made)  # pyright: ignore[reportPrivateUsage]
