"""One request's answer in the making: its tokens, its text, and when it is finished. No engine, no clock, no I/O."""

from __future__ import annotations

from collections.abc import Sequence

from enclave.protocol.bodies import GenerateParams
from enclaved.plugin.engine import SampleRow, SequenceId, Token, Vocabulary
from enclaved.worker.sampling import draws, sampling_of
from enclaved.worker.text.detokenise import Detokeniser
from enclaved.worker.text.stops import StopScanner


class Generation:
    """A sequence from its prompt to its last token."""

    def __init__(
        self,
        request: str,
        prompt: Sequence[Token],
        params: GenerateParams,
        *,
        tokens_max: int,
        seed: int,
        vocabulary: Vocabulary,
    ) -> None:
        self.request = request
        self.prompt_tokens = len(prompt)
        self.sequence: SequenceId | None = None
        """Set while the engine holds it."""
        self.evaluated = 0
        """How many of its tokens the engine has evaluated."""
        self.finish_reason: str | None = None
        self.paused = False
        self._tokens: list[Token] = list(prompt)
        self._tokens_max = tokens_max
        self._ignore_eos = params.ignore_eos
        self._sampling = sampling_of(params)
        self._draw = draws(seed, choice=0)
        self._vocabulary = vocabulary
        self._detokeniser = Detokeniser()
        self._scanner = StopScanner(params.stop)

    @property
    def completion_tokens(self) -> int:
        return len(self._tokens) - self.prompt_tokens

    @property
    def tokens_left(self) -> int:
        """Tokens that the engine has not evaluated yet; never 0 while unfinished."""
        return len(self._tokens) - self.evaluated

    def next_tokens(self, count: int) -> list[Token]:
        """The next `count` tokens to evaluate."""
        return self._tokens[self.evaluated : self.evaluated + count]

    def row(self, sequence: SequenceId) -> SampleRow:
        """What the engine needs to choose the next token."""
        return SampleRow(sequence, self._sampling, self._draw(len(self._tokens)))

    def book(self, token: Token) -> str:
        """Takes the token that was chosen; gives the text that can be shown now. Sets `finish_reason` at the end.

        A token that ends the generation is no part of the answer, and is not counted.
        """
        if self._vocabulary.ends_generation(token) and not self._ignore_eos:
            self.finish_reason = "stop"
            return self._rest()
        self._tokens.append(token)
        text = self._scanner.feed(self._detokeniser.feed(self._vocabulary.piece(token)))
        if self._scanner.stopped:
            self.finish_reason = "stop"
        elif self.completion_tokens >= self._tokens_max:
            self.finish_reason = "length"
            text += self._rest()
        return text

    def _rest(self) -> str:
        text = self._scanner.feed(self._detokeniser.end())
        return text if self._scanner.stopped else text + self._scanner.end()
