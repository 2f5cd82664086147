"""The fake engine: it takes its time, answers what its knobs say, and dies when told to.

It runs in the worker like any engine, and really waits there: it stands for a slow one. What it answers depends only on
the tokens that a sequence holds, so a prompt in chunks, in a batch or evaluated a second time gives the same answer.
"""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from enclave_fake.knobs import Knobs, knobs_of
from enclave_fake.plugin import ANSWER_MARKER, VOCABULARY_SIZE
from enclave_fake.sampling import choose
from enclaved.plugin.engine import (
    Capabilities,
    Engine,
    EngineError,
    InterruptedStepError,
    LoadError,
    LoadRequest,
    MemoryUse,
    NoRoomError,
    OpenFile,
    Placement,
    Run,
    Sampled,
    SampleRow,
    SequenceId,
    Token,
    Vocabulary,
)

BEGIN, END, ANSWER = Token(256), Token(257), Token(258)
MARKERS: Mapping[str, Token] = {"<|begin|>": BEGIN, "<|end|>": END, ANSWER_MARKER: ANSWER}

LOAD_STEPS = 10
"""Loading reports its progress so often."""

SHARES = (0.7, 0.2, 0.1)
"""Probability of the token that comes next, and of the two beside it."""


class ByteVocabulary(Vocabulary):
    """A token for each byte, and three markers: begin, end, and the one that ends a prompt."""

    @property
    def size(self) -> int:
        return VOCABULARY_SIZE

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[Token]:
        tokens = [BEGIN] if add_special else []
        parts = re.split("(" + "|".join(map(re.escape, MARKERS)) + ")", text) if parse_special else [text]
        for part in parts:
            if parse_special and part in MARKERS:
                tokens.append(MARKERS[part])
            else:
                tokens += [Token(byte) for byte in part.encode("utf-8", "replace")]
        return [*tokens, ANSWER] if add_special else tokens

    def piece(self, token: Token) -> bytes:
        self._check(token)
        return bytes([token]) if token < BEGIN else b""

    def ends_generation(self, token: Token) -> bool:
        self._check(token)
        return token == END

    def _check(self, token: Token) -> None:
        if not 0 <= token < VOCABULARY_SIZE:
            raise ValueError(f"token {token} is not in the vocabulary of {VOCABULARY_SIZE}")


def open_vocabulary(files: Sequence[OpenFile]) -> ByteVocabulary:
    """The one vocabulary that all fake models have."""
    return ByteVocabulary()


@dataclass
class _Sequence:
    """The tokens of a sequence, and where its prompt ends."""

    tokens: list[Token] = field(default_factory=list[Token])
    marked_length: int | None = None
    """Tokens up to the last answer marker, with it."""
    asked_length: int | None = None
    """Tokens when logits were wanted first: where a prompt without a marker ends."""
    wants_logits: bool = False

    @property
    def prompt_length(self) -> int:
        if self.marked_length is not None:
            return self.marked_length
        return len(self.tokens) if self.asked_length is None else self.asked_length

    def append(self, run: Run) -> None:
        if len(run.tokens) > 1:  # more of a prompt, whatever was answered before
            self.asked_length = None
        self.tokens += run.tokens
        if ANSWER in run.tokens:
            self._find_marker()
        if self.asked_length is None and run.wants_logits:
            self.asked_length = len(self.tokens)

    def cut(self, length: int) -> None:
        del self.tokens[length:]
        self._find_marker()
        if self.asked_length is not None and self.asked_length > length:
            self.asked_length = None

    def take_out(self, start: int, count: int) -> None:
        del self.tokens[start : start + count]
        self._find_marker()
        if self.asked_length is not None:
            self.asked_length = max(min(self.asked_length, start), self.asked_length - count)

    def _find_marker(self) -> None:
        indices = (index for index in reversed(range(len(self.tokens))) if self.tokens[index] == ANSWER)
        index = next(indices, None)
        self.marked_length = None if index is None else index + 1


class FakeEngine(Engine):
    """An engine without a model.

    `wait` and `kill` are what it does to the world; a test's subclass puts others in their place.
    """

    _loads: ClassVar[dict[str, int]] = {}
    """Loads of each model in this process so far."""

    def __init__(self, knobs: Knobs, placement: Placement) -> None:
        self.vocabulary = ByteVocabulary()
        self.capabilities = Capabilities(
            sequences=min(placement.sequences, knobs.sequences),
            context=min(placement.context, knobs.context),
            batch_tokens=knobs.batch_tokens,
            cache_tokens=knobs.cells,
            can_trim=knobs.trim,
            can_share=knobs.trim,
            can_shift=knobs.trim,
            threads="exact",
        )
        self.threads = placement.threads
        self._knobs = knobs
        self._cells = knobs.cells or self.capabilities.context * self.capabilities.sequences
        self._sequences = [_Sequence() for _ in range(self.capabilities.sequences)]
        self._sampled = 0
        self._interrupted = threading.Event()
        self._closed = False

    @classmethod
    def load(cls, request: LoadRequest, progress: Callable[[float], bool]) -> FakeEngine:
        try:
            knobs = knobs_of(request.settings)
        except ValueError as error:
            raise LoadError(f"{request.model}: {error}") from None
        engine = cls(knobs, request.placement)
        never = threading.Event()
        for step in range(LOAD_STEPS):
            if step == LOAD_STEPS // 2:
                cls._fail_as_told(request.model, knobs, engine._needed_bytes())
            if not progress(step / LOAD_STEPS):
                raise LoadError(f"{request.model}: loading was cancelled")
            if knobs.load_seconds > 0:
                cls.wait(never, knobs.load_seconds / LOAD_STEPS)
        if not progress(1.0):
            raise LoadError(f"{request.model}: loading was cancelled")
        return engine

    @classmethod
    def _fail_as_told(cls, model: str, knobs: Knobs, needed_bytes: int) -> None:
        if knobs.crash_at_load:
            cls.kill()
        if knobs.load_fails:
            raise LoadError(knobs.load_fails)
        cls._loads[model] = cls._loads.get(model, 0) + 1
        if cls._loads[model] <= knobs.out_of_memory_loads or 0 < knobs.out_of_memory_above < needed_bytes:
            raise LoadError(f"{model}: out of memory, {needed_bytes} bytes are needed", out_of_memory=True)

    @staticmethod
    def wait(event: threading.Event, seconds: float | None) -> bool:
        return event.wait(seconds)

    @staticmethod
    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def read_body(self, body: bytes) -> Sequence[Token] | None:
        return [*map(Token, body), ANSWER] if self._knobs.mode == "body" else None

    def forward(self, runs: Sequence[Run]) -> None:
        """Takes as long as the knobs say, the newest tokens first, then each chunk of a prompt.

        When interrupted, what was finished before stays.
        """
        self._check(runs)
        for sequence in self._sequences:
            sequence.wants_logits = False
        newest = [run for run in runs if run.position > 0 and len(run.tokens) == 1]
        chunks = [run for run in runs if not (run.position > 0 and len(run.tokens) == 1)]
        done: list[Run] = []
        for part in ([newest] if newest else []) + [[run] for run in chunks]:
            speed = self._knobs.tokens_per_second if part is newest else self._knobs.prompt_tokens_per_second
            amount = 1 if part is newest else len(part[0].tokens)
            if self._is_interrupted_within(amount / speed if speed > 0 else 0):
                self._give_back_last_tokens(done)
                raise InterruptedStepError("the step was interrupted")
            for run in part:
                self._sequences[run.sequence].append(run)
            done += part
        for run in runs:
            self._sequences[run.sequence].wants_logits = run.wants_logits

    def sample(self, rows: Sequence[SampleRow]) -> list[Sampled]:
        self._check_open()
        sampled: list[Sampled] = []
        for row in rows:
            if not self._has_sequence(row.sequence) or not self._sequences[row.sequence].wants_logits:
                raise EngineError(f"sequence {row.sequence} has no logits: the last step was not asked for them")
            self._sampled += 1
            if self._sampled == self._knobs.crash_at_token:
                self.kill()
            sampled.append(choose(self._distribution(self._sequences[row.sequence]), row))
        return sampled

    def length(self, sequence: SequenceId) -> int:
        return len(self._at(sequence).tokens)

    def drop(self, sequence: SequenceId) -> None:
        self._at(sequence)
        self._sequences[sequence] = _Sequence()

    def trim(self, sequence: SequenceId, length: int) -> bool:
        held = self._at(sequence)
        if not 0 <= length <= len(held.tokens):
            raise EngineError(f"sequence {sequence} holds {len(held.tokens)} tokens and cannot be cut back to {length}")
        if length < len(held.tokens):
            if not self._knobs.trim:
                return False
            held.cut(length)
            held.wants_logits = False
        return True

    def share(self, source: SequenceId, target: SequenceId, length: int) -> None:
        held, empty = self._at(source), self._at(target)
        if not self._knobs.trim:
            raise EngineError("this model's sequences share nothing")
        if held is empty or empty.tokens:
            raise EngineError(f"sequence {target} is not empty")
        if not 0 < length <= len(held.tokens):
            raise EngineError(f"sequence {source} holds {len(held.tokens)} tokens, not {length} to share")
        if self._held_tokens() + length > self._cells:
            raise NoRoomError(f"all sequences together may hold {self._cells} tokens")
        empty.append(Run(target, 0, held.tokens[:length], wants_logits=False))

    def shift(self, sequence: SequenceId, start: int, count: int) -> None:
        held = self._at(sequence)
        if not self._knobs.trim:
            raise EngineError("this model's sequences cannot be shifted")
        if not (start >= 0 and count > 0 and start + count <= len(held.tokens)):
            raise EngineError(f"sequence {sequence} holds {len(held.tokens)} tokens, not {count} from {start}")
        held.take_out(start, count)
        held.wants_logits = False

    def set_threads(self, threads: int) -> None:
        self.threads = threads

    def interrupt(self) -> None:
        if not self._knobs.deaf:
            self._interrupted.set()

    def memory(self) -> MemoryUse:
        if self._knobs.measured_bytes:
            return MemoryUse(weights_bytes=self._knobs.measured_bytes)
        return MemoryUse(weights_bytes=self._knobs.bytes, kv_bytes=self._kv_bytes())

    def close(self) -> None:
        self._closed = True
        self._sequences = []

    def _is_interrupted_within(self, seconds: float) -> bool:
        """Lets time pass (for ever, when it is never to answer) and says whether an interrupt ended it."""
        wait_seconds = None if self._knobs.never_answer else seconds
        if self._interrupted.is_set() or (wait_seconds != 0 and self.wait(self._interrupted, wait_seconds)):
            self._interrupted.clear()
            return True
        return False

    def _give_back_last_tokens(self, runs: Sequence[Run]) -> None:
        """Takes the last token from each run that wanted logits: they are gone, and evaluating it again brings them."""
        for run in runs:
            if run.wants_logits:
                held = self._sequences[run.sequence]
                held.cut(len(held.tokens) - 1 if self._knobs.trim else 0)

    def _check(self, runs: Sequence[Run]) -> None:
        """Raises EngineError or NoRoomError for a step that breaks a rule, before anything changed."""
        self._check_open()
        if len({run.sequence for run in runs}) != len(runs):
            raise EngineError("a sequence has two runs in one step")
        if sum(len(run.tokens) for run in runs) > self.capabilities.batch_tokens:
            raise EngineError(f"a step carries at most {self.capabilities.batch_tokens} tokens")
        for run in runs:
            length = self.length(run.sequence)
            if not run.tokens:
                raise EngineError(f"the run of sequence {run.sequence} has no tokens")
            if run.position != length:
                raise EngineError(f"sequence {run.sequence} holds {length} tokens, its run begins at {run.position}")
            if min(run.tokens) < 0 or max(run.tokens) >= VOCABULARY_SIZE:
                raise EngineError(f"the run of sequence {run.sequence} has a token outside the vocabulary")
            if length + len(run.tokens) > self.capabilities.context:
                raise NoRoomError(f"sequence {run.sequence} may hold {self.capabilities.context} tokens")
        if self._held_tokens() + sum(len(run.tokens) for run in runs) > self._cells:
            raise NoRoomError(f"all sequences together may hold {self._cells} tokens")

    def _held_tokens(self) -> int:
        return sum(len(sequence.tokens) for sequence in self._sequences)

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("the engine is closed")

    def _has_sequence(self, sequence: SequenceId) -> bool:
        return 0 <= sequence < len(self._sequences)

    def _at(self, sequence: SequenceId) -> _Sequence:
        self._check_open()
        if not self._has_sequence(sequence):
            raise EngineError(f"there is no sequence {sequence}")
        return self._sequences[sequence]

    def _distribution(self, sequence: _Sequence) -> dict[Token, float]:
        """The token that the answer goes on with, and two others, so that a draw has something to choose from."""
        token = self._next_token(sequence)
        others = [Token(other) for other in b"xyz" if other != token]
        return dict(zip((token, *others), SHARES, strict=False))

    def _next_token(self, sequence: _Sequence) -> Token:
        prompt_length = sequence.prompt_length
        index = len(sequence.tokens) - prompt_length
        if self._knobs.text:
            answer = self._knobs.text.encode("utf-8", "replace")
        elif self._knobs.mode in ("echo", "body"):
            answer = bytes(token for token in sequence.tokens[:prompt_length] if token < BEGIN)
        else:
            return Token(counting_byte(index))
        return Token(answer[index]) if index < len(answer) else END

    def _kv_bytes(self) -> int:
        return self._knobs.kv_bytes * self.capabilities.context * self.capabilities.sequences

    def _needed_bytes(self) -> int:
        return self._knobs.bytes + self._kv_bytes()


def counting_byte(index: int) -> int:
    """The byte at `index` of "1 2 3 …"."""
    digits = 1
    while index >= (block := 9 * 10 ** (digits - 1) * (digits + 1)):
        index -= block
        digits += 1
    number = 10 ** (digits - 1) + index // (digits + 1)
    return (b"%d " % number)[index % (digits + 1)]
