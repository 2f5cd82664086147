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
    Run,
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

    def __init__(self, *, sequences: int = 2, context: int = 64, batch_tokens: int = 8) -> None:
        self.vocabulary = SmallVocabulary()
        self.capabilities = Capabilities(sequences=sequences, context=context, batch_tokens=batch_tokens)
        self.calls: list[list[Run]] = []
        """Every step that was asked for."""
        self.failures: deque[Exception | None] = deque()
        """What the next steps raise."""
        self.before_step: Callable[[], None] = lambda: None
        self.interrupts = 0
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
        failure = self.failures.popleft() if self.failures else None
        if isinstance(failure, InterruptedStepError):
            # The first run was through, its last token's logits are lost; the others never began.
            self._held.setdefault(runs[0].sequence, []).extend(runs[0].tokens[:-1])
        if failure is not None:
            raise failure
        for run in runs:
            self._held.setdefault(run.sequence, []).extend(run.tokens)
            if run.wants_logits:
                self._ready.add(run.sequence)

    def sample(self, rows: Sequence[SampleRow]) -> list[Token]:
        return [self._next(row.sequence) for row in rows]

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
        return False

    def set_threads(self, threads: int) -> None:
        self.threads = threads

    def interrupt(self) -> None:
        self.interrupts += 1

    def memory(self) -> MemoryUse:
        return MemoryUse()

    def close(self) -> None:
        self._held.clear()
