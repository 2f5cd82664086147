"""One request for text: its choices, what it has cost, and the messages that it ends with. No engine, no clock."""

from __future__ import annotations

from dataclasses import dataclass

from enclave.protocol.bodies import GenerateResult, Timings, Usage
from enclave.protocol.methods import write_body
from enclaved.link.messages import Failed, Finished
from enclaved.plugin.engine import Vocabulary
from enclaved.worker.asked import Asked
from enclaved.worker.generation import Generation


@dataclass
class Times:
    """Seconds of one request, by the loop's clock."""

    submitted_at: float
    tokenize_seconds: float = 0.0
    prompt_seconds: float = 0.0
    first_token_seconds: float | None = None
    decoding_seconds: float = 0.0
    charged_seconds: float = 0.0
    evaluated_tokens: int = 0
    """Some of them twice, when a sequence was given away meanwhile."""

    def charge(self, seconds: float, sharers: int, *, is_prompt: bool) -> None:
        """A call took so long, for so many sequences; this request had one of them in it."""
        self.charged_seconds += seconds / sharers
        if is_prompt:
            self.prompt_seconds += seconds
        else:
            self.decoding_seconds += seconds


class Job:
    """All choices of a request, and its times."""

    def __init__(self, request: str, asked: Asked, priority: str, vocabulary: Vocabulary, times: Times) -> None:
        self.request = request
        self.times = times
        self.cached_tokens: int | None = None
        """Of the prompt, when the first choice got its sequence; None: not yet."""
        self.uncached_reason: str | None = None
        self.choices = [
            Generation(request, asked, choice, priority=priority, vocabulary=vocabulary)
            for choice in range(asked.choices)
        ]
        self._asked = asked

    @property
    def prompt_tokens(self) -> int:
        return len(self._asked.prompt)

    @property
    def is_finished(self) -> bool:
        return all(choice.finish_reason is not None for choice in self.choices)

    def finish_at_once(self) -> None:
        """No token is wanted."""
        for choice in self.choices:
            choice.finish_reason = "length"

    def finished(self, now: float, context: int) -> Finished:
        """Its result."""
        times = self.times
        reasons = tuple(choice.finish_reason or "stop" for choice in self.choices)
        ran_out = any(
            choice.finish_reason == "length" and choice.completion_tokens >= self._asked.tokens_max
            for choice in self.choices
        )
        result = GenerateResult(
            finish_reason=reasons[0],
            finish_reasons=reasons if len(reasons) > 1 else (),
            seed=self._asked.seed,
            context_full=ran_out and self._asked.ends_with_context,
            usage=Usage(
                prompt_tokens=self.prompt_tokens,
                cached_tokens=self.cached_tokens or 0,
                completion_tokens=sum(choice.completion_tokens for choice in self.choices),
                uncached_reason=self.uncached_reason,
                left_out_tokens=self._asked.left_out_tokens,
                shifted_tokens=sum(choice.shifted_tokens for choice in self.choices),
            ),
            timings=Timings(
                tokenize_seconds=times.tokenize_seconds,
                prompt_seconds=times.prompt_seconds,
                first_token_seconds=times.first_token_seconds,
                decoding_seconds=times.decoding_seconds,
                total_seconds=now - times.submitted_at,
            ),
        )
        header = {
            "prompt_seconds": times.prompt_seconds,
            "decoding_seconds": times.decoding_seconds,
            "charged_seconds": times.charged_seconds,
            "preempted": sum(choice.preempted for choice in self.choices),
            "context": context,
        }
        return Finished(self.request, header, write_body(result))

    def failed(self, code: str, message: str, detail: str = "") -> Failed:
        """Its end without a result, with what it has cost until then."""
        numbers = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": sum(choice.completion_tokens for choice in self.choices),
            "evaluated_tokens": self.times.evaluated_tokens,
            "charged_seconds": self.times.charged_seconds,
        }
        return Failed(self.request, code, message, numbers, detail.encode("utf-8", "replace"))
