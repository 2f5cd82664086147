"""`enclave bench MODEL`: how fast a model is on this machine, as the worker measures it."""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from enclave_cli.errors import usage
from enclave_cli.invocation import COUNT_MAX, Invocation, json_option, no_start_option
from enclave_cli.output import count, duration, table
from enclave_cli.progress import shown_on
from enclave_cli.references import reference
from enclave_cli.status_line import StatusLine

if TYPE_CHECKING:
    from enclave_cli.daemon import Answer, AnswerStream, Daemon

CONTENT_TOKENS_FROM = 300
"""Below it vocabularies have their special tokens and single bytes."""
STREAM_PROMPT_TOKENS = 32
"""Of a stream whose decoding is measured."""


@dataclass
class Figures:
    """One figure a round."""

    values: list[float] = field(default_factory=list[float])

    def document(self) -> dict[str, float]:
        return {"median": statistics.median(self.values), "min": min(self.values), "max": max(self.values)}

    def text(self, show: Any) -> str:
        spread = f" ({show(min(self.values))} to {show(max(self.values))})" if len(self.values) > 1 else ""
        return f"{show(statistics.median(self.values))}{spread}"


@click.command("bench")
@click.argument("model")
@click.option(
    "--prompt-tokens",
    type=click.IntRange(2, COUNT_MAX),
    default=512,
    show_default=True,
    metavar="N",
    help="Length of the prompt whose evaluation is measured.",
)
@click.option(
    "--tokens",
    "-n",
    type=click.IntRange(2, COUNT_MAX),
    default=64,
    show_default=True,
    metavar="N",
    help="Tokens that each stream makes.",
)
@click.option(
    "--streams",
    type=click.IntRange(1, 256),
    multiple=True,
    metavar="N",
    help="So many answers at once. May be given again.  [default: 1, 4]",
)
@click.option(
    "--rounds",
    type=click.IntRange(1, 1000),
    default=3,
    show_default=True,
    metavar="N",
    help="How often all of it is measured.",
)
@click.option("--backend", metavar="NAME", help="Only this backend will do; `enclave plugins` lists them.")
@click.option("--context", type=click.IntRange(1, COUNT_MAX), metavar="N", help="Tokens of context wished for.")
@json_option("Print one JSON document: {load_seconds, prompt: {…}, decode: [{streams, tokens_per_second}, …]}.")
@no_start_option(hidden=True)
@click.pass_obj
def command(
    invocation: Invocation,
    model: str,
    prompt_tokens: int,
    tokens: int,
    streams: tuple[int, ...],
    rounds: int,
    backend: str | None,
    context: int | None,
) -> None:
    """Measure how fast a model is on this machine.

    Prompts are tokens at random, so that none of them comes from the cache; answers go on where the model would end.
    Each figure is the median of some rounds, with the least and the most. Whatever else the machine does slows it down.

    \b
    Examples:
      enclave bench tiny
      enclave bench ./some.gguf --prompt-tokens 2000 --streams 1 --streams 8 --rounds 5
      enclave bench tiny --json | jq .prompt.tokens_per_second.median
    """
    name = reference(model)
    widths = streams or (1, 4)
    options = {key: value for key, value in {"backend": backend, "context": context}.items() if value is not None}
    with invocation.client() as client, StatusLine(sys.stderr) as status:
        began = time.perf_counter()
        loaded = client.load(name, context=context, backend=backend, progress=shown_on(status, model)).result()
        instance = loaded.instance
        load_seconds = time.perf_counter() - began
        room = (instance.context or COUNT_MAX) - 1
        if max(prompt_tokens, STREAM_PROMPT_TOKENS + tokens) > room:
            raise usage(
                f"the context of {count(instance.context)} is too small for that",
                f"ask for more with --context, or for at most --prompt-tokens {room}",
            )
        header = client.show(name).header
        vocabulary = (header.vocabulary_size if header is not None else None) or 2 * CONTENT_TOKENS_FROM
        bench = _Bench(client, name, vocabulary, options)
        speed, first, decode = Figures(), Figures(), {width: Figures() for width in widths}
        for number in range(rounds):
            status.show(f"{model}: round {number + 1} of {rounds}, a prompt of {count(prompt_tokens)} tokens")
            answer = bench.answers(1, prompt_tokens, 1)[0]
            first.values.append(answer.timings.first_token_seconds or 0.0)
            speed.values.append(prompt_tokens / max(answer.timings.prompt_seconds or 0.0, 1e-9))
            for width in widths:
                status.show(f"{model}: round {number + 1} of {rounds}, {width} at once")
                decode[width].values.append(together(bench.answers(width, STREAM_PROMPT_TOKENS, tokens)))
    if invocation.json:
        invocation.print_json(
            {
                "model": name,
                "backend": instance.backend,
                "threads": instance.threads,
                "already_loaded": loaded.already_loaded,
                "load_seconds": load_seconds,
                "prompt": {
                    "tokens": prompt_tokens,
                    "tokens_per_second": speed.document(),
                    "first_token_seconds": first.document(),
                },
                "decode": [
                    {"streams": width, "tokens_per_second": figures.document()} for width, figures in decode.items()
                ],
            }
        )
        return
    rows = [("load", duration(load_seconds), "")] if not loaded.already_loaded else []
    rows.append((f"prompt of {count(prompt_tokens)} tokens", speed.text(_speed), "tokens/s"))
    rows.append(("its first token", first.text(duration), ""))
    rows += [
        (f"{width} answer{'s' if width > 1 else ''} at once", figures.text(_speed), "tokens/s")
        for width, figures in decode.items()
    ]
    invocation.print(table(("what", "median", "unit"), rows))


def together(answers: Sequence[Answer]) -> float:
    """Tokens a second of answers that were made at once: each one's tokens over the time it was decoded in."""
    return sum(answer.usage.completion_tokens / max(answer.timings.decoding_seconds or 0.0, 1e-9) for answer in answers)


class _Bench:
    """Asks for answers to prompts that nobody has asked before."""

    def __init__(self, client: Daemon, model: str, vocabulary_size: int, options: dict[str, Any]) -> None:
        self._client = client
        self._model = model
        self._first = min(CONTENT_TOKENS_FROM, vocabulary_size // 2)
        self._end = vocabulary_size
        self._options = options
        self._numbers = random.Random()

    def answers(self, streams: int, prompt_tokens: int, tokens: int) -> list[Answer]:
        """Whatever ends them early cancels those that are left."""
        asked: list[AnswerStream] = []
        try:
            for _ in range(streams):
                prompt = [self._numbers.randrange(self._first, self._end) for _ in range(prompt_tokens)]
                asked.append(
                    self._client.generate(
                        self._model, prompt, temperature=0, max_tokens=tokens, ignore_eos=True, **self._options
                    )
                )
            return [stream.result() for stream in asked]
        except BaseException:
            for stream in asked:
                stream.cancel()
            raise


def _speed(value: float) -> str:
    return f"{value:.1f}"
