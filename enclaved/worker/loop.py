"""The engine's loop: takes commands, plans a step, runs it, books what came out. One thread calls the engine.

`plan` (pure) says what a step evaluates, the engine evaluates it, `Generation` books the tokens. Commands come from the
reader thread through a queue; only `interrupt` reaches into a running step. What a step has to say leaves together.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from enclave.protocol.bodies import GenerateParams, GenerateResult, Timings, Usage
from enclave.protocol.codec import decode
from enclave.protocol.errors import RemoteProtocolError
from enclave.protocol.methods import write_body
from enclave.protocol.packing import BODY_LIMITS, unpack
from enclaved.link.messages import (
    Cancel,
    Chunk,
    Failed,
    Finished,
    FromChild,
    Measured,
    Pause,
    Prompted,
    Resume,
    SetThreads,
    Submit,
)
from enclaved.link.packing import pack
from enclaved.plugin.engine import Engine, EngineError, InterruptedStepError, Run, SequenceId, Token
from enclaved.worker.generation import Generation
from enclaved.worker.plan import Pending, Share, plan

Command = Submit | Cancel | Pause | Resume | SetThreads

UNCACHED = "prompts are not cached yet"
"""Why no token of a prompt comes from a cache."""


@dataclass
class _Times:
    """Seconds of one request, by the loop's clock."""

    submitted_at: float
    tokenize_seconds: float = 0.0
    prompt_seconds: float = 0.0
    first_token_seconds: float | None = None
    decoding_seconds: float = 0.0
    charged_seconds: float = 0.0
    evaluated_tokens: int = 0
    """Some of them twice, when the sequence was given away meanwhile."""


class EngineLoop:
    """Runs generations on one engine until the process ends."""

    def __init__(
        self, engine: Engine, send_all: Callable[[Sequence[FromChild]], None], clock: Callable[[], float]
    ) -> None:
        self._engine = engine
        self._send_all = send_all
        self._clock = clock
        self._outbox: list[FromChild] = []
        self._inbox: SimpleQueue[Command] = SimpleQueue()
        self._free = [SequenceId(number) for number in reversed(range(engine.capabilities.sequences))]
        # Invariant: each generation is in exactly one of the two; `_running` is keyed by its sequence.
        self._waiting: list[Generation] = []
        self._running: dict[SequenceId, Generation] = {}
        self._times: dict[str, _Times] = {}
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
        self._flush()
        self._admit()
        self._step()

    def _send(self, message: FromChild) -> None:
        self._outbox.append(message)

    def _flush(self) -> None:
        if self._outbox:
            messages, self._outbox = self._outbox, []
            self._send_all(messages)

    @property
    def _can_go_on(self) -> bool:
        """Whether there is something to do without another command."""
        if any(not generation.paused for generation in self._running.values()):
            return True
        has_sequence = bool(self._free or self._running)  # a paused one's can be had
        return has_sequence and any(not generation.paused for generation in self._waiting)

    def _obey(self, command: Command) -> None:
        match command:
            case Submit():
                self._submit(command)
            case Cancel():
                self._end(command.request, "cancelled", "The request was cancelled.")
            case Pause():
                self._set_paused(command.request, True)
            case Resume():
                self._set_paused(command.request, False)
            case SetThreads():
                self._engine.set_threads(command.threads)

    def _submit(self, command: Submit) -> None:
        now = self._clock()
        try:
            if command.method != "generate" or command.choices != 1:
                name, what = "choices", "more than one choice"
                if command.method != "generate":
                    name, what = "method", command.method
                raise RemoteProtocolError(f"{what} is not built yet", code="unsupported", field=name)
            own = self._engine.read_body(command.body)
            if own is not None:
                params, prompt = GenerateParams(prompt=(), temperature=0), list(own)
            else:
                params = decode(GenerateParams, unpack(command.body, BODY_LIMITS, "body"))
                prompt = self._prompt(params)
        except RemoteProtocolError as error:
            code = "bad_request" if error.code == "bad_message" else error.code
            self._send(Failed(command.request, code, error.message, dict(error.numbers), b"", error.field or "body"))
            return
        except EngineError as error:
            message = "The backend could not make tokens of the prompt."
            detail = str(error).encode("utf-8", "replace")
            self._send(Failed(command.request, "bad_request", message, {}, detail, "prompt"))
            return
        context = self._engine.capabilities.context
        if len(prompt) >= context:
            message = (
                f"The prompt has {len(prompt):,} tokens; the context of {context:,} leaves {context - 1:,} for it."
            )
            numbers = {"prompt_tokens": len(prompt), "context": context}
            self._send(Failed(command.request, "context_exceeded", message, numbers, b""))
            return
        room = context - len(prompt)
        generation = Generation(
            command.request,
            prompt,
            params,
            tokens_max=room if command.max_tokens is None else min(command.max_tokens, room),
            seed=secrets.randbits(64) if params.seed is None else params.seed,
            vocabulary=self._engine.vocabulary,
        )
        self._times[command.request] = _Times(now, tokenize_seconds=self._clock() - now)
        self._send(Measured(command.request, len(prompt), 0))
        if command.max_tokens == 0:
            generation.finish_reason = "length"
            self._finish(generation)
            return
        self._waiting.append(generation)

    def _prompt(self, params: GenerateParams) -> list[Token]:
        vocabulary = self._engine.vocabulary
        if isinstance(params.prompt, str):
            tokens = vocabulary.encode(params.prompt, add_special=True, parse_special=False)
        else:
            wrong = next((token for token in params.prompt if token >= vocabulary.size), None)
            if wrong is not None:
                raise RemoteProtocolError(
                    f"prompt: token {wrong} is outside the vocabulary of {vocabulary.size}", field="prompt"
                )
            tokens = [Token(token) for token in params.prompt]
        if not tokens:
            raise RemoteProtocolError("prompt: empty, and the model has no token to begin with", field="prompt")
        return tokens

    def _set_paused(self, request: str, paused: bool) -> None:
        for generation in [*self._waiting, *self._running.values()]:
            if generation.request == request:
                generation.paused = paused

    def _admit(self) -> None:
        """Gives sequences to those who wait, also those of paused ones, which evaluate their tokens again later."""
        for generation in [generation for generation in self._waiting if not generation.paused]:
            if not self._free:
                paused = next((each for each in self._running.values() if each.paused), None)
                if paused is None:
                    return
                self._take_sequence(paused)
                self._waiting.append(paused)
            self._waiting.remove(generation)
            generation.sequence = self._free.pop()
            self._running[generation.sequence] = generation

    def _take_sequence(self, generation: Generation) -> None:
        if generation.sequence is not None and self._running.pop(generation.sequence, None) is not None:
            self._engine.drop(generation.sequence)
            self._free.append(generation.sequence)
            generation.sequence = None
            generation.evaluated = 0

    def _step(self) -> None:
        pending = [
            Pending(sequence, generation.tokens_left, generation.paused)
            for sequence, generation in self._running.items()
        ]
        for call in plan(pending, self._engine.capabilities.batch_tokens).calls:
            self._call([(self._running[share.sequence], share) for share in call])
            self._flush()

    def _call(self, call: list[tuple[Generation, Share]]) -> None:
        runs = [
            Run(
                share.sequence,
                generation.evaluated,
                generation.next_tokens(share.tokens),
                wants_logits=share.tokens == generation.tokens_left,
            )
            for generation, share in call
        ]
        self._alone = call[0][0].request if len(call) == 1 else None
        started = self._clock()
        try:
            self._engine.forward(runs)
            sampled = [(g, share) for (g, share), run in zip(call, runs, strict=True) if run.wants_logits]
            tokens = self._engine.sample([g.row(share.sequence) for g, share in sampled]) if sampled else []
        except InterruptedStepError:
            for generation, share in call:
                generation.evaluated = self._engine.length(share.sequence)
            return
        except EngineError as error:
            for generation, _ in call:
                self._end(generation.request, "internal", "The backend failed in the middle of a step.", str(error))
            return
        finally:
            self._alone = None
        now = self._clock()
        for generation, share in call:
            self._charge(generation, now - started, len(call))
            self._times[generation.request].evaluated_tokens += share.tokens
            generation.evaluated += share.tokens
            if generation.evaluated < generation.prompt_tokens:
                self._send(Prompted(generation.request, generation.evaluated, generation.prompt_tokens))
        for (generation, _), token in zip(sampled, tokens, strict=True):
            self._book(generation, token, now)

    def _charge(self, generation: Generation, seconds: float, sharers: int) -> None:
        times = self._times[generation.request]
        times.charged_seconds += seconds / sharers
        if generation.evaluated < generation.prompt_tokens:
            times.prompt_seconds += seconds
        else:
            times.decoding_seconds += seconds

    def _book(self, generation: Generation, token: Token, now: float) -> None:
        times = self._times[generation.request]
        if times.first_token_seconds is None:
            times.first_token_seconds = now - times.submitted_at
        before = generation.completion_tokens
        text = generation.book(token)
        tokens = [token] if generation.completion_tokens > before else []
        if text or tokens:
            self._send(Chunk(generation.request, 1, pack({"text": text, "tokens": tokens})))
        if generation.finish_reason is not None:
            self._finish(generation)

    def _finish(self, generation: Generation) -> None:
        self._release(generation)
        times = self._times.pop(generation.request)
        result = GenerateResult(
            finish_reason=generation.finish_reason or "stop",
            usage=Usage(
                prompt_tokens=generation.prompt_tokens,
                completion_tokens=generation.completion_tokens,
                uncached_reason=UNCACHED,
            ),
            timings=Timings(
                tokenize_seconds=times.tokenize_seconds,
                prompt_seconds=times.prompt_seconds,
                first_token_seconds=times.first_token_seconds,
                decoding_seconds=times.decoding_seconds,
                total_seconds=self._clock() - times.submitted_at,
            ),
        )
        header = {
            "prompt_seconds": times.prompt_seconds,
            "decoding_seconds": times.decoding_seconds,
            "charged_seconds": times.charged_seconds,
            "preempted": 0,
            "context": self._engine.capabilities.context,
        }
        self._send(Finished(generation.request, header, write_body(result)))

    def _end(self, request: str, code: str, message: str, detail: str = "") -> None:
        """Ends a request without a result. One that is not here has ended already."""
        found = next((g for g in [*self._waiting, *self._running.values()] if g.request == request), None)
        if found is None:
            return
        self._release(found)
        times = self._times.pop(request)
        numbers = {
            "prompt_tokens": found.prompt_tokens,
            "completion_tokens": found.completion_tokens,
            "evaluated_tokens": times.evaluated_tokens,
            "charged_seconds": times.charged_seconds,
        }
        self._send(Failed(request, code, message, numbers, detail.encode("utf-8", "replace")))

    def _release(self, generation: Generation) -> None:
        if generation in self._waiting:
            self._waiting.remove(generation)
        self._take_sequence(generation)
