"""The engine's sequences: who has one, which of those without a request keep their tokens for the next prompt like it.

`prefixes` (pure) decides, this carries it out. A sequence is free (empty), at rest (its request is over, its tokens
stay) or live; the loop knows the live ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from enclaved.plugin.engine import Engine, EngineError, SequenceId, Token
from enclaved.worker.generation import Generation
from enclaved.worker.prefixes import SMALL_REST, Evicted, Resident, Seat, is_worth_waiting, seat, uncached_reason

NOT_CACHED = "this model's cache cannot be cut back, so prompts are not cached"


@dataclass(frozen=True)
class Taken:
    """A sequence was found: so many tokens lie in it already, and why not more."""

    cached: int
    reason: str | None


class Seats:
    """Gives sequences to generations and takes them back."""

    def __init__(self, engine: Engine, *, reloaded: bool = False) -> None:
        capabilities = engine.capabilities
        self._engine = engine
        self._keeps = capabilities.can_trim
        self._share_tokens = capabilities.share_tokens if capabilities.can_share else None
        self._reloaded = reloaded
        self._free = [SequenceId(number) for number in reversed(range(capabilities.sequences))]
        self._resting: dict[SequenceId, list[Token]] = {}
        self._used: dict[SequenceId, int] = {}
        self._uses = 0
        self._evicted = Evicted()

    @property
    def has_seat(self) -> bool:
        """Whether a sequence can be had."""
        return bool(self._free or self._resting)

    def is_worth_waiting(self, generation: Generation, evaluating: Iterable[Generation]) -> bool:
        """Whether one of these, whose prompts are being evaluated, is on its way to what this one needs."""
        if not self._keeps or self._share_tokens is None:
            return False
        beginnings = ((each.tokens, each.evaluated) for each in evaluating)
        return is_worth_waiting(generation.tokens, beginnings, self._share_tokens)

    def take(self, generation: Generation, live: Iterable[Generation]) -> Taken | None:
        """Gives a generation a sequence, with as many of its tokens in it as can be had; None when all are live. An
        empty one is taken beside those that are live, if there is such a one, else the first."""
        prompt = generation.tokens
        live = list(live)
        neighbours = {each.sequence for each in live}
        # Backends may compute neighbouring sequences together, and others apart.
        self._free.sort(key=lambda free: (free - 1 in neighbours or free + 1 in neighbours, -free))
        found = seat(prompt, self._residents(live), self._free, self._share_tokens)
        if found is None:
            return None
        is_first = not self._uses
        evicted_length = self._evicted.common_length(prompt) if self._keeps else 0
        cached = self._prepare(found)
        generation.sequence = found.sequence
        generation.evaluated = cached
        self._use(found.sequence)
        if found.source is not None:
            self._use(found.source)
        if not self._keeps:
            return Taken(cached, NOT_CACHED)
        reason = uncached_reason(
            prompt,
            found,
            evicted_length,
            is_first=is_first,
            reloaded=self._reloaded,
            text=self._text(prompt, found.differs_at),
        )
        return Taken(cached, reason)

    def give_back(self, generation: Generation) -> None:
        """Takes a generation's sequence from it. What was evaluated stays there for the next, where that is safe."""
        sequence, generation.sequence = generation.sequence, None
        if sequence is None:
            return
        tokens = generation.tokens[: generation.reusable]
        generation.evaluated = 0
        if self._keeps and tokens and self._engine.trim(sequence, len(tokens)):
            self._resting[sequence] = tokens
            self._use(sequence)
        else:
            self._engine.drop(sequence)
            self._free.append(sequence)

    def evict(self) -> bool:
        """Empties the sequence at rest that was of no use for longest; False when none is at rest."""
        oldest = min(self._resting, key=lambda sequence: self._used[sequence], default=None)
        if oldest is None:
            return False
        self._empty(oldest)
        self._free.append(oldest)
        return True

    def _residents(self, live: Iterable[Generation]) -> list[Resident]:
        if not self._keeps:
            return []
        residents = [
            Resident(sequence, tokens, len(tokens), False, self._used[sequence])
            for sequence, tokens in self._resting.items()
        ]
        residents += [
            Resident(generation.sequence, generation.tokens, generation.reusable, True, self._used[generation.sequence])
            for generation in live
            if generation.sequence is not None
        ]
        return residents

    def _prepare(self, found: Seat) -> int:
        """Makes the sequence hold its part of the prompt; gives how many tokens it really holds."""
        if found.evicted is not None:
            self._empty(found.evicted)
        elif found.sequence in self._resting:
            return self._cut(found.sequence, found.cached)
        else:
            self._free.remove(found.sequence)
        if found.source is None:
            return 0
        try:
            self._engine.share(found.source, found.sequence, found.cached)
        except EngineError:  # it is evaluated, which is all that is lost
            return 0
        return found.cached

    def _cut(self, sequence: SequenceId, length: int) -> int:
        tokens = self._resting.pop(sequence)
        if len(tokens) - length > SMALL_REST:
            self._evicted.add(tokens)
        if self._engine.trim(sequence, length):
            return length
        self._engine.drop(sequence)
        return 0

    def _empty(self, sequence: SequenceId) -> None:
        self._evicted.add(self._resting.pop(sequence))
        self._engine.drop(sequence)

    def _use(self, sequence: SequenceId) -> None:
        self._uses += 1
        self._used[sequence] = self._uses

    def _text(self, prompt: list[Token], place: int | None) -> str:
        if place is None or place >= len(prompt):
            return ""
        return self._engine.vocabulary.piece(prompt[place]).decode("utf-8", "replace")
