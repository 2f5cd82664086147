"""One answer in the making: its tokens, its text, and when it is finished. No engine, no clock, no I/O."""

from __future__ import annotations

from typing import Any

from enclaved.plugin.engine import Sampled, SampleRow, SequenceId, Token, Vocabulary
from enclaved.worker.asked import Asked
from enclaved.worker.overflow import Cut
from enclaved.worker.sampling import FILTER_STREAM, draws
from enclaved.worker.text.detokenise import Detokeniser
from enclaved.worker.text.stops import StopScanner

LOGPROB_MIN = -1e30
"""For a token that the model gives no probability at all: numbers on the wire are finite."""


class Generation:
    """A sequence from its prompt to its last token: one of a request's choices."""

    def __init__(self, request: str, asked: Asked, choice: int, *, priority: str, vocabulary: Vocabulary) -> None:
        self.request = request
        self.choice = choice
        self.priority = priority
        self.prompt_tokens = len(asked.prompt)
        self.completion_tokens = 0
        self.shifted_tokens = 0
        self.tokens: list[Token] = list(asked.prompt)
        """What the sequence holds or is about to, oldest first."""
        self.sequence: SequenceId | None = None
        """Set while the engine holds it."""
        self.evaluated = 0
        """How many of its tokens the engine has evaluated."""
        self.finish_reason: str | None = None
        self.paused = False
        self.preempted = 0
        """How often its sequence was given to another before it was finished."""
        self.keep = asked.keep
        """Tokens at the beginning that a shift leaves."""
        self._tokens_max = asked.tokens_max
        self._ignore_eos = asked.params.ignore_eos
        self._logprobs = asked.params.logprobs
        self._sampling = asked.sampling
        self._draw = draws(asked.seed, choice)
        self._filter_draw = draws(asked.seed, choice, FILTER_STREAM)
        self._mirostat_mu: float | None = None
        self._vocabulary = vocabulary
        self._detokeniser = Detokeniser()
        self._scanner = StopScanner(asked.params.stop)

    @property
    def tokens_left(self) -> int:
        """Tokens that the engine has not evaluated yet; never 0 while unfinished."""
        return len(self.tokens) - self.evaluated

    @property
    def reusable(self) -> int:
        """How many of its evaluated tokens are what an evaluation without a shift would have made."""
        return min(self.evaluated, self.keep) if self.shifted_tokens else self.evaluated

    def next_tokens(self, count: int) -> list[Token]:
        """The next `count` tokens to evaluate."""
        return self.tokens[self.evaluated : self.evaluated + count]

    def shifted(self, cut: Cut) -> None:
        """These of its tokens are no longer in the context."""
        del self.tokens[cut.start : cut.start + cut.count]
        self.evaluated = max(min(self.evaluated, cut.start), self.evaluated - cut.count)
        self.shifted_tokens += cut.count

    def row(self, sequence: SequenceId) -> SampleRow:
        """What the engine needs to choose the next token."""
        position = self.prompt_tokens + self.completion_tokens
        return SampleRow(
            sequence,
            self._sampling,
            self._draw(position),
            self._filter_draw(position) if self._sampling.xtc_probability else 0.0,
            self.tokens if self._sampling.looks_back else (),
            self._mirostat_mu,
            self._logprobs,
        )

    def book(self, sampled: Sampled) -> dict[str, Any] | None:
        """Takes the token that was chosen; gives what of it can be shown now, as the plain form of a `TextChunk`. Sets
        `finish_reason` at the end.

        A token that ends the generation is no part of the answer, and is not counted.
        """
        self._mirostat_mu = sampled.mirostat_mu
        token = sampled.token
        if self._vocabulary.ends_generation(token) and not self._ignore_eos:
            self.finish_reason = "stop"
            text = self._rest()
            return self._chunk(text) if text else None
        self.tokens.append(token)
        self.completion_tokens += 1
        text = self._scanner.feed(self._detokeniser.feed(self._vocabulary.piece(token)))
        if self._scanner.stopped:
            self.finish_reason = "stop"
        elif self.completion_tokens >= self._tokens_max:
            self.finish_reason = "length"
            text += self._rest()
        return self._chunk(text, sampled)

    def _chunk(self, text: str, sampled: Sampled | None = None) -> dict[str, Any]:
        chunk: dict[str, Any] = {"text": text}
        if sampled is not None:
            chunk["tokens"] = [sampled.token]
            if self._logprobs is not None and sampled.logprob is not None:
                top = [self._logprob(token, logprob) for token, logprob in sampled.top]
                chosen = self._logprob(sampled.token, sampled.logprob)
                chunk["logprobs"] = [{**chosen, "top": top} if top else chosen]
        if self.choice:
            chunk["choice"] = self.choice
        return chunk

    def _logprob(self, token: Token, logprob: float) -> dict[str, Any]:
        return {
            "token": token,
            "logprob": max(logprob, LOGPROB_MIN),
            "text": self._vocabulary.piece(token).decode("utf-8", "replace"),
        }

    def _rest(self) -> str:
        text = self._scanner.feed(self._detokeniser.end())
        return text if self._scanner.stopped else text + self._scanner.end()
