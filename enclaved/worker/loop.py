"""The engine's loop: takes commands, plans a step, runs it, books what came out. One thread calls the engine.

`plan` (pure) says what a step evaluates, the engine evaluates it, `Generation` books the tokens; `Seats` knows whose
the engine's sequences are. Commands come from the reader thread through a queue; only `interrupt` reaches into a
running step. What a step has to say leaves together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from enclaved.link.messages import (
    Cancel,
    Chunk,
    Failed,
    FromChild,
    Measured,
    Pause,
    Prompted,
    Resume,
    SetThreads,
    Submit,
)
from enclaved.link.packing import pack
from enclaved.plugin.engine import Engine, EngineError, InterruptedStepError, NoRoomError, Run, Sampled, SequenceId
from enclaved.worker.generation import Generation
from enclaved.worker.intake import RefusedError
from enclaved.worker.job import Job, Times
from enclaved.worker.overflow import shifting
from enclaved.worker.pace import Pace
from enclaved.worker.plan import RANKS, Pending, Share, plan
from enclaved.worker.pooling import Pooling, TextsJob
from enclaved.worker.reading import LONG_BODY_BYTES, Reader, WasRead, outcome_of
from enclaved.worker.seats import Seats
from enclaved.worker.texts import ReadTexts

Command = Submit | Cancel | Pause | Resume | SetThreads


@dataclass
class _BeingRead:
    """A request that is not tokens yet."""

    submitted_at: float
    paused: bool = False


class EngineLoop:
    """Runs generations on one engine until the process ends."""

    def __init__(
        self,
        engine: Engine,
        send_all: Callable[[Sequence[FromChild]], None],
        clock: Callable[[], float],
        *,
        reloaded: bool = False,
        gather_seconds: float = 0.0,
    ) -> None:
        """`reloaded`: whether the model was loaded before, and lost its cache. `gather_seconds`: how long tokens may
        wait for those of the next steps, to leave together; a request's first never does."""
        self._engine = engine
        self._send_all = send_all
        self._clock = clock
        self._outbox: list[FromChild] = []
        self._gather_seconds = gather_seconds
        self._flushed_at = clock()
        self._is_urgent = False
        """Whether something in the outbox must not wait."""
        self._inbox: SimpleQueue[Command | WasRead] = SimpleQueue()
        self._reader = Reader(engine, self._inbox.put)
        self._being_read: dict[str, _BeingRead] = {}
        self._seats = Seats(engine, reloaded=reloaded)
        self._pooling = Pooling(engine, self._send, clock)
        self._pace = Pace(engine.capabilities.chunk_tokens)
        self._jobs: dict[str, Job] = {}
        # Invariant: each unfinished generation is in exactly one of the two; `_running` is keyed by its sequence.
        self._waiting: list[Generation] = []
        self._running: dict[SequenceId, Generation] = {}
        self._is_crowded = False
        """Whether the cache was too small for all: until one has left, nobody new gets a sequence."""
        self._alone: str | None = None
        """The request that the engine works on alone just now, and that an interrupt would therefore hurt alone."""

    def post(self, command: Command) -> None:
        """Hands a command over, from any thread. A cancel also ends the step that works for its request alone."""
        self._inbox.put(command)
        if isinstance(command, Cancel) and self._alone == command.request:
            self._engine.interrupt()

    def run_forever(self) -> None:
        """Steps while there is work, waits for a command while there is none. Only the process's end ends it."""
        while True:
            self.turn()

    def turn(self) -> None:
        """Takes every command that is there (waiting for one when nothing can run), then makes one step."""
        if not self._can_go_on:
            self._obey(self._inbox.get())
        while True:
            try:
                self._obey(self._inbox.get_nowait())
            except Empty:
                break
        self._admit()
        self._flush()
        self._step()
        if self._pooling.has_work:
            self._is_urgent = True
            self._flush()
            self._alone = self._pooling.only_request
            self._pooling.step()
            self._alone = None
        self._flush()

    def _send(self, message: FromChild, *, may_wait: bool = False) -> None:
        self._outbox.append(message)
        self._is_urgent = self._is_urgent or not may_wait

    def _flush(self) -> None:
        if not self._outbox:
            return
        now = self._clock()
        if self._is_urgent or now - self._flushed_at >= self._gather_seconds or not self._can_go_on:
            messages, self._outbox = self._outbox, []
            self._flushed_at, self._is_urgent = now, False
            self._send_all(messages)

    @property
    def _can_go_on(self) -> bool:
        """Whether there is something to do without another command."""
        if self._pooling.has_work or any(not generation.paused for generation in self._running.values()):
            return True
        has_sequence = bool(self._running) or self._seats.has_seat  # a paused one's can be had
        return has_sequence and any(not generation.paused for generation in self._waiting)

    # --- commands ---

    def _obey(self, command: Command | WasRead) -> None:
        match command:
            case Submit():
                self._submit(command)
            case WasRead():
                self._begin(command)
            case Cancel():
                self._end(command.request, "cancelled", "The request was cancelled.")
            case Pause():
                self._set_paused(command.request, True)
            case Resume():
                self._set_paused(command.request, False)
            case SetThreads():
                self._engine.set_threads(command.threads)

    def _submit(self, command: Submit) -> None:
        self._being_read[command.request] = _BeingRead(self._clock())
        if len(command.body) > LONG_BODY_BYTES:
            self._reader.read(command)
        else:
            self._begin(WasRead(command, outcome_of(command, self._engine)))

    def _begin(self, read: WasRead) -> None:
        command, asked = read.command, read.outcome
        being_read = self._being_read.pop(command.request, None)
        if being_read is None:
            return  # it was cancelled meanwhile
        if isinstance(asked, RefusedError):
            self._send(asked.failed(command.request))
            return
        submitted_at = being_read.submitted_at
        if isinstance(asked, ReadTexts):
            tokenize_seconds = self._clock() - submitted_at
            self._pooling.begin(
                TextsJob(
                    command.request,
                    asked,
                    command.priority,
                    submitted_at,
                    tokenize_seconds,
                    paused=being_read.paused,
                )
            )
            return
        times = Times(submitted_at, tokenize_seconds=self._clock() - submitted_at)
        job = Job(command.request, asked, command.priority, self._engine.vocabulary, times)
        if command.max_tokens == 0:
            job.finish_at_once()
            self._send(Measured(job.request, job.prompt_tokens, 0))
            self._send(job.finished(self._clock(), self._engine.capabilities.context))
            return
        self._jobs[job.request] = job
        self._waiting += job.choices
        self._set_paused(job.request, being_read.paused)

    def _set_paused(self, request: str, paused: bool) -> None:
        being_read = self._being_read.get(request)
        if being_read is not None:
            being_read.paused = paused
        self._pooling.set_paused(request, paused)
        job = self._jobs.get(request)
        for generation in job.choices if job is not None else ():
            generation.paused = paused

    # --- sequences ---

    def _admit(self) -> None:
        """Gives sequences to those who wait, also those of paused ones, which go on later from what is left of their
        tokens in the cache."""
        if self._is_crowded and any(not generation.paused for generation in self._running.values()):
            return
        self._is_crowded = False
        waiting = [generation for generation in self._waiting if not generation.paused]
        for generation in sorted(waiting, key=lambda g: RANKS.get(g.priority, 1)):
            if not self._seats.has_seat:
                paused = next((each for each in self._running.values() if each.paused), None)
                if paused is None:
                    return
                self._take_back(paused)
                self._waiting.append(paused)
            if not self._seats.is_worth_waiting(generation, self._evaluating_before(generation)):
                self._seat(generation)

    def _evaluating_before(self, generation: Generation) -> list[Generation]:
        """Whose prompts are evaluated before this one's."""
        rank = RANKS.get(generation.priority, 1)
        return [
            each
            for each in self._running.values()
            if each.tokens_left > 1 and not each.paused and RANKS.get(each.priority, 1) <= rank
        ]

    def _seat(self, generation: Generation) -> None:
        taken = self._seats.take(generation, self._running.values())
        if taken is None or generation.sequence is None:
            return
        self._waiting.remove(generation)
        self._running[generation.sequence] = generation
        job = self._jobs[generation.request]
        if job.cached_tokens is None:
            job.cached_tokens, job.uncached_reason = min(taken.cached, job.prompt_tokens), taken.reason
            self._send(Measured(job.request, job.prompt_tokens, job.cached_tokens))

    def _take_back(self, generation: Generation) -> None:
        if generation.sequence is not None:
            self._running.pop(generation.sequence, None)
            self._seats.give_back(generation)
            self._is_crowded = False

    def _make_room(self) -> bool:
        """Frees cache for a step that found none: first what is at rest, then what the least urgent and newest of those
        who run holds, which goes on when another has left. False when a single one is left: its own tokens fill it."""
        if self._seats.evict():
            return True
        if len(self._running) < 2:
            return False
        by_age = list(self._running.values())
        least = max(by_age, key=lambda g: (g.paused, RANKS.get(g.priority, 1), by_age.index(g)))
        least.preempted += 1
        self._take_back(least)
        self._waiting.insert(0, least)
        self._is_crowded = True
        self._seats.evict()
        return True

    # --- a step ---

    def _step(self) -> None:
        for generation in list(self._running.values()):
            if generation.evaluated >= self._engine.capabilities.context:
                try:
                    self._shift(generation)
                except EngineError as error:
                    self._fail([generation], error)
        pending = [
            Pending(sequence, generation.tokens_left, generation.paused, generation.priority)
            for sequence, generation in self._running.items()
        ]
        for call in plan(pending, self._engine.capabilities.batch_tokens, self._pace).calls:
            if any(share.tokens > 1 for share in call):
                self._is_urgent = True  # a chunk of a prompt takes longer than tokens may wait
                self._flush()
            # One that ended, or lost its sequence, in an earlier call of this step is here no more.
            self._call([(self._running[share.sequence], share) for share in call if share.sequence in self._running])
            self._flush()

    def _shift(self, generation: Generation) -> None:
        """Drops the oldest tokens of a full context, in the cache too where the engine can, else they are evaluated
        again without them."""
        assert generation.sequence is not None
        cut = shifting(generation.evaluated, generation.keep)
        can_shift = self._engine.capabilities.can_shift
        if can_shift:
            self._engine.shift(generation.sequence, cut.start, cut.count)
        else:
            self._engine.drop(generation.sequence)
        generation.shifted(cut)
        if not can_shift:
            generation.evaluated = 0

    def _call(self, call: list[tuple[Generation, Share]]) -> None:
        while call:
            try:
                self._evaluate(call)
            except NoRoomError as error:
                if not self._make_room():
                    self._fail([g for g, _ in call], error)
                    return
                call = [(g, share) for g, share in call if g.sequence == share.sequence]
                continue
            except InterruptedStepError:
                for generation, share in call:
                    generation.evaluated = self._engine.length(share.sequence)
            except EngineError as error:
                self._fail([g for g, _ in call], error)
            return

    def _evaluate(self, call: list[tuple[Generation, Share]]) -> None:
        runs = [
            Run(
                share.sequence,
                generation.evaluated,
                generation.next_tokens(share.tokens),
                wants_logits=share.tokens == generation.tokens_left,
            )
            for generation, share in call
        ]
        self._alone = call[0][0].request if len({g.request for g, _ in call}) == 1 else None
        started = self._clock()
        try:
            self._engine.forward(runs)
        finally:
            self._alone = None
        wanting = [generation for (generation, _), run in zip(call, runs, strict=True) if run.wants_logits]
        results = self._sample(wanting)
        now = self._clock()
        self._learn(call, now - started)
        for generation, share in call:
            times = self._jobs[generation.request].times
            is_prompt = generation.evaluated < generation.prompt_tokens
            times.charge(now - started, len(call), is_prompt=is_prompt)
            times.evaluated_tokens += share.tokens
            generation.evaluated += share.tokens
            if generation.choice == 0 and generation.evaluated < generation.prompt_tokens:
                self._send(Prompted(generation.request, generation.evaluated, generation.prompt_tokens))
        for generation, result in zip(wanting, results, strict=True):
            if isinstance(result, Sampled):
                self._book(generation, result, now)
            else:
                self._fail([generation], result, "No token could be chosen.")

    def _sample(self, wanting: Sequence[Generation]) -> Sequence[Sampled | EngineError]:
        """A token for each, or why there is none. What one request asks for spoils no other's token."""
        rows = [g.row(g.sequence) for g in wanting if g.sequence is not None]
        if not rows:
            return []
        with suppress(EngineError):
            return self._engine.sample(rows)
        results: list[Sampled | EngineError] = []
        for row in rows:
            try:
                results += self._engine.sample([row])
            except EngineError as error:
                results.append(error)
        return results

    def _learn(self, call: list[tuple[Generation, Share]], seconds: float) -> None:
        tokens = sum(share.tokens for _, share in call)
        if tokens == len(call):
            self._pace.decoded(seconds)
        else:
            self._pace.evaluated(tokens, seconds)

    def _book(self, generation: Generation, sampled: Sampled, now: float) -> None:
        job = self._jobs[generation.request]
        is_first = job.times.first_token_seconds is None
        if is_first:
            job.times.first_token_seconds = now - job.times.submitted_at
        chunk = generation.book(sampled)
        if chunk is not None:
            self._send(Chunk(generation.request, 1, pack(chunk)), may_wait=not is_first)
        if generation.finish_reason is not None:
            self._take_back(generation)
            if job.is_finished:
                del self._jobs[generation.request]
                self._send(job.finished(self._clock(), self._engine.capabilities.context))

    # --- ends without a result ---

    def _fail(
        self, failed: list[Generation], error: EngineError, message: str = "The backend failed in the middle of a step."
    ) -> None:
        for generation in failed:
            generation.evaluated = 0  # what is left of it is not to be trusted
            self._end(generation.request, "internal", message, str(error))

    def _end(self, request: str, code: str, message: str, detail: str = "") -> None:
        """Ends a request without a result. One that is not here has ended already."""
        being_read = self._being_read.pop(request, None)
        if being_read is not None:
            self._send(Failed(request, code, message, {}, b""))
            return
        if self._pooling.end(request, code, message, detail):
            return
        job = self._jobs.pop(request, None)
        if job is None:
            return
        self._waiting = [generation for generation in self._waiting if generation.request != request]
        for generation in job.choices:
            self._take_back(generation)
        self._send(job.failed(code, message, detail))
