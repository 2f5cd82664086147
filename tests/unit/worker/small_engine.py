"""An engine of a few lines for the loop's tests: it answers the prompt backwards, and fails when told to.

It keeps every rule of the contract and breaks the test when the loop does not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from enclaved.plugin.engine import (
    Capabilities,
    Engine,
    EngineError,
    InterruptedStepError,
    LoadRequest,
    MemoryUse,
    NoRoomError,
    Run,
    Sampled,
    SampleRow,
    SequenceId,
    Token,
    Vocabulary,
)

END = Token(0)
TOO_LONG = 10_000


ANSWER = 256
"""Added to a byte's token when it is of an answer: so a prompt is told from an answer that is evaluated again."""


class SmallVocabulary(Vocabulary):
    """Two tokens for each byte of UTF-8, for prompts and for answers; byte 0 ends an answer."""

    @property
    def size(self) -> int:
        return 2 * ANSWER

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[Token]:
        if len(text) > TOO_LONG:
            raise EngineError("the text is too long to tokenise")
        return [Token(byte) for byte in text.encode()]

    def piece(self, token: Token) -> bytes:
        return b"" if token == END else bytes([token % ANSWER])

    def ends_generation(self, token: Token) -> bool:
        return token == END


class SmallEngine(Engine):
    """Answers a prompt with its tokens in reverse, then ends."""

    def __init__(
        self,
        *,
        sequences: int = 2,
        context: int = 64,
        batch_tokens: int = 8,
        caches: bool = False,
        cache_tokens: int = 0,
        can_shift: bool = False,
    ) -> None:
        """`caches`: sequences can be cut back and shared. `cache_tokens`: what all hold together, shared ones once."""
        self.vocabulary = SmallVocabulary()
        self.capabilities = Capabilities(
            sequences=sequences,
            context=context,
            batch_tokens=batch_tokens,
            cache_tokens=cache_tokens,
            chunk_tokens=4,
            can_trim=caches,
            can_share=caches,
            can_shift=can_shift,
        )
        self.calls: list[list[Run]] = []
        """Every step that was asked for."""
        self.failures: deque[Exception | None] = deque()
        """What the next steps raise."""
        self.before_step: Callable[[], None] = lambda: None
        self.interrupts = 0
        self.evaluated = 0
        """Tokens, so that a test sees what came from the cache."""
        self.rows: list[SampleRow] = []
        self.threads = 1
        self._held: dict[SequenceId, list[Token]] = {}
        self._ready: set[SequenceId] = set()

    @classmethod
    def load(cls, request: LoadRequest, progress: Callable[[float], bool]) -> SmallEngine:
        return cls()

    @property
    def held(self) -> set[SequenceId]:
        """Sequences that hold tokens."""
        return {sequence for sequence, tokens in self._held.items() if tokens}

    def forward(self, runs: Sequence[Run]) -> None:
        self.before_step()
        self.calls.append(list(runs))
        assert 1 <= sum(len(run.tokens) for run in runs) <= self.capabilities.batch_tokens
        assert len({run.sequence for run in runs}) == len(runs)
        for run in runs:
            assert run.position == self.length(run.sequence)
            assert run.position + len(run.tokens) <= self.capabilities.context
            assert 0 <= run.sequence < self.capabilities.sequences
        self._ready = set()
        taken = self._cells + sum(len(run.tokens) for run in runs)
        if self.capabilities.cache_tokens and taken > self.capabilities.cache_tokens:
            raise NoRoomError("full")
        failure = self.failures.popleft() if self.failures else None
        if isinstance(failure, InterruptedStepError):
            # The first run was through, its last token's logits are lost; the others never began.
            self._held.setdefault(runs[0].sequence, []).extend(runs[0].tokens[:-1])
        if failure is not None:
            raise failure
        for run in runs:
            self._held.setdefault(run.sequence, []).extend(run.tokens)
            self.evaluated += len(run.tokens)
            if run.wants_logits:
                self._ready.add(run.sequence)

    @property
    def _cells(self) -> int:
        """Places that tokens take: a beginning that several sequences hold alike may be shared."""
        return len({tuple(tokens[: end + 1]) for tokens in self._held.values() for end in range(len(tokens))})

    def sample(self, rows: Sequence[SampleRow]) -> list[Sampled]:
        self.rows += rows
        return [Sampled(self._next(row.sequence)) for row in rows]

    def _next(self, sequence: SequenceId) -> Token:
        assert sequence in self._ready
        tokens = self._held[sequence]
        prompt = [token for token in tokens if token < ANSWER]
        answered = len(tokens) - len(prompt)
        return Token(prompt[-1 - answered] + ANSWER) if answered < len(prompt) else END

    def length(self, sequence: SequenceId) -> int:
        return len(self._held.get(sequence, []))

    def drop(self, sequence: SequenceId) -> None:
        self._held.pop(sequence, None)

    def trim(self, sequence: SequenceId, length: int) -> bool:
        assert 0 <= length <= self.length(sequence)
        if self.capabilities.can_trim:
            del self._held.setdefault(sequence, [])[length:]
        return self.capabilities.can_trim

    def share(self, source: SequenceId, target: SequenceId, length: int) -> None:
        assert self.capabilities.can_share
        assert source != target
        assert not self.length(target)
        assert 0 < length <= self.length(source)
        self._held[target] = self._held[source][:length]

    def shift(self, sequence: SequenceId, start: int, count: int) -> None:
        assert self.capabilities.can_shift
        assert 0 <= start < start + count <= self.length(sequence)
        del self._held[sequence][start : start + count]

    def set_threads(self, threads: int) -> None:
        self.threads = threads

    def interrupt(self) -> None:
        self.interrupts += 1

    def memory(self) -> MemoryUse:
        return MemoryUse()

    def close(self) -> None:
        self._held.clear()
