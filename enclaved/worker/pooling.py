"""Embedding and ranking in the loop: texts of several requests side by side, a short call at a time.

Which texts go into a call is decided by `packed` (pure). A call is short, so that a cancel or a more urgent request
waits for no more than one.
"""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from enclave.protocol.bodies import EmbedResult, Ranked, RerankParams, RerankResult, Timings, Usage
from enclave.protocol.methods import write_body
from enclaved.link.messages import Failed, Finished, FromChild, Measured, Prompted
from enclaved.plugin.engine import Engine, EngineError, InterruptedStepError, Token
from enclaved.worker.plan import RANKS
from enclaved.worker.texts import ReadTexts


@dataclass
class TextsJob:
    """A request to embed or rank, and what it has so far."""

    request: str
    asked: ReadTexts
    priority: str
    submitted_at: float
    tokenize_seconds: float
    pooled: list[bytes] = field(default_factory=list[bytes], repr=False)
    tokens_done: int = 0
    charged_seconds: float = 0.0
    computing_seconds: float = 0.0
    paused: bool = False

    def __post_init__(self) -> None:
        self.tokens = sum(map(len, self.asked.texts))

    @property
    def is_done(self) -> bool:
        return len(self.pooled) == len(self.asked.texts)

    def next_texts(self, count: int) -> list[list[Token]]:
        """Of those that have no vector yet, the first `count`."""
        return self.asked.texts[len(self.pooled) : len(self.pooled) + count]

    def take(self, vectors: list[bytes], tokens: int) -> None:
        """The vectors of its next texts, which have so many tokens."""
        self.pooled += vectors
        self.tokens_done += tokens


def packed(lengths: Sequence[Sequence[int]], texts_max: int, tokens_max: int) -> list[int]:
    """How many texts of each request go into the next call: in order, as many as fit. `lengths`: tokens of the texts
    that each request still has, the most urgent request first; none is longer than `tokens_max`."""
    counts: list[int] = []
    texts, tokens = 0, 0
    is_full = False
    for of_request in lengths:
        count = 0
        for length in of_request:
            is_full = is_full or texts == texts_max or tokens + length > tokens_max
            if is_full:
                break
            count, texts, tokens = count + 1, texts + 1, tokens + length
        counts.append(count)
    return counts


class Pooling:
    """The requests for vectors and scores of one engine."""

    def __init__(self, engine: Engine, send: Callable[[FromChild], None], clock: Callable[[], float]) -> None:
        self._engine = engine
        self._send = send
        self._clock = clock
        self._jobs: list[TextsJob] = []

    @property
    def has_work(self) -> bool:
        return any(not job.paused for job in self._jobs)

    @property
    def only_request(self) -> str | None:
        """The request that the next call works for alone."""
        waiting = [job.request for job in self._jobs if not job.paused]
        return waiting[0] if len(waiting) == 1 else None

    def begin(self, job: TextsJob) -> None:
        """Takes a request in."""
        self._send(Measured(job.request, job.tokens, 0))
        self._jobs.append(job)
        self._jobs.sort(key=lambda each: RANKS.get(each.priority, 1))

    def set_paused(self, request: str, paused: bool) -> None:
        for job in self._jobs:
            if job.request == request:
                job.paused = paused

    def end(self, request: str, code: str, message: str, detail: str = "") -> bool:
        """Ends a request without a result; False when it is none of these."""
        job = next((job for job in self._jobs if job.request == request), None)
        if job is None:
            return False
        self._jobs.remove(job)
        numbers = {
            "prompt_tokens": job.tokens,
            "evaluated_tokens": job.tokens_done,
            "charged_seconds": job.charged_seconds,
        }
        self._send(Failed(request, code, message, numbers, detail.encode("utf-8", "replace")))
        return True

    def step(self) -> None:
        """One call of the engine."""
        jobs = [job for job in self._jobs if not job.paused]
        limits = self._engine.capabilities
        lengths = [[len(text) for text in job.next_texts(limits.sequences)] for job in jobs]
        shares = [
            (job, job.next_texts(count))
            for job, count in zip(jobs, packed(lengths, limits.sequences, limits.batch_tokens), strict=True)
            if count
        ]
        self._pool(shares)

    def _pool(self, shares: list[tuple[TextsJob, list[list[Token]]]]) -> None:
        started = self._clock()
        try:
            vectors = self._engine.pool([text for _, texts in shares for text in texts])
        except InterruptedStepError:
            return
        except EngineError as error:
            if len(shares) > 1:  # each by itself, to see whose fault it is
                for share in shares:
                    self._pool([share])
                return
            self.end(shares[0][0].request, "internal", "The backend failed in the middle of a step.", str(error))
            return
        now = self._clock()
        total = sum(len(text) for _, texts in shares for text in texts)
        for job, texts in shares:
            tokens = sum(map(len, texts))
            job.take(vectors[: len(texts)], tokens)
            del vectors[: len(texts)]
            job.charged_seconds += (now - started) * tokens / total
            job.computing_seconds += now - started
            if job.is_done:
                self._jobs.remove(job)
                self._send(self._finished(job))
            else:
                self._send(Prompted(job.request, job.tokens_done, job.tokens))

    def _finished(self, job: TextsJob) -> Finished:
        usage = Usage(prompt_tokens=job.tokens)
        timings = Timings(
            tokenize_seconds=job.tokenize_seconds,
            prompt_seconds=job.computing_seconds,
            total_seconds=self._clock() - job.submitted_at,
        )
        header = {
            "prompt_seconds": job.computing_seconds,
            "decoding_seconds": 0.0,
            "charged_seconds": job.charged_seconds,
            "preempted": 0,
            "context": self._engine.capabilities.context,
        }
        params, truncated = job.asked.params, job.asked.truncated
        if isinstance(params, RerankParams):
            ranking = ranked(job.pooled)[: params.top]
            result = RerankResult(ranking=ranking, truncated=truncated, usage=usage, timings=timings)
            return Finished(job.request, header, write_body(result))
        result = EmbedResult(
            count=len(job.pooled),
            dimensions=self._engine.capabilities.embedding_length,
            truncated=truncated,
            usage=usage,
            timings=timings,
        )
        rows = map(normalised, job.pooled) if params.normalize else job.pooled
        kind = f"float32[{result.count},{result.dimensions}]"
        return Finished(job.request, header, write_body(result), [[kind, b"".join(rows)]])


def ranked(scores: Sequence[bytes]) -> tuple[Ranked, ...]:
    """Best first, of equals the first."""
    values = [_floats(score)[0] for score in scores]
    order = sorted(range(len(values)), key=lambda index: -values[index])
    return tuple(Ranked(index=index, score=values[index]) for index in order)


def normalised(vector: bytes) -> bytes:
    """The vector of length 1 in the same direction; one of length 0 stays as it is."""
    values = _floats(vector)
    length = math.hypot(*values)
    if length == 0:
        return vector
    scaled = array("f", [value / length for value in values])
    if sys.byteorder == "big":
        scaled.byteswap()
    return scaled.tobytes()


def _floats(data: bytes) -> array[float]:
    values = array("f", data)
    if sys.byteorder == "big":
        values.byteswap()
    return values
