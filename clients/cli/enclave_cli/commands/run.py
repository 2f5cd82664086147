"""`enclave run`: let a model continue a prompt and print what it says."""

from __future__ import annotations

import shlex
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import click

from enclave_cli.errors import CommandError, Problem, problem_of, usage, with_hint
from enclave_cli.invocation import COUNT_MAX, Decorated, Invocation, Priority, json_option, no_start_option
from enclave_cli.output import NOTHING, count, duration, facts, plain_map, rate
from enclave_cli.prompts import joined, read_piped, read_terminal
from enclave_cli.references import looks_like_a_prompt, reference
from enclave_cli.sinks import DocumentSink, LinesSink, Sink, TextSink
from enclave_cli.status_line import StatusLine

if TYPE_CHECKING:
    from enclave.calls import SamplingOptions
    from enclave.protocol.bodies import ModelShow
    from enclave_cli.daemon import Answer, Daemon

TEMPLATE_NOTE = "the model's chat template is not applied yet (--raw silences this)"
_NOT_RESOLVED = frozenset({"model_not_found", "bad_reference", "model_unreadable"})
_SEED_MAX = 2**64 - 1
_COUNT = click.IntRange(0, COUNT_MAX)


@dataclass(frozen=True)
class Wish:
    """The options of one run, as they go into every request of it."""

    options: SamplingOptions
    """Keyword arguments of `Client.generate`; only those that were given."""
    raw: bool
    stream: bool
    verbose: bool
    priority: Priority


def sampling_options(function: Decorated) -> Decorated:
    """The options that say how tokens are drawn and when to stop."""
    options = (
        click.option("--max-tokens", "-n", type=_COUNT, metavar="N", help="Tokens of answer at most."),
        click.option(
            "--temperature", "-t", type=click.FloatRange(min=0), metavar="F", help="0 takes the likeliest token always."
        ),
        click.option(
            "--seed", type=click.IntRange(0, _SEED_MAX), metavar="N", help="The same seed draws the same answer."
        ),
        click.option("--top-k", type=_COUNT, metavar="N", help="Draw from the N likeliest; 0 is off."),
        click.option(
            "--top-p",
            type=click.FloatRange(0, 1),
            metavar="F",
            help="Draw from the likeliest that make up F; 1 is off.",
        ),
        click.option(
            "--min-p",
            type=click.FloatRange(0, 1),
            metavar="F",
            help="Leave out what is less than F times as likely as the likeliest; 0 is off.",
        ),
        click.option("--stop", multiple=True, metavar="TEXT", help="End before this text. May be given again."),
    )
    for option in reversed(options):
        function = option(function)
    return function


@click.command("run")
@click.argument("model", required=False)
@click.argument("prompt", required=False)
@click.option("--raw", is_flag=True, help="Apply no chat template.")
@sampling_options
@click.option("--backend", metavar="NAME", help="Only this backend will do; `enclave plugins` lists them.")
@click.option("--context", type=click.IntRange(1, COUNT_MAX), metavar="N", help="Tokens of context wished for.")
@click.option(
    "--priority",
    type=click.Choice(["interactive", "normal", "background"]),
    help="Whose turn it is.  [default: interactive on a terminal, else normal]",
)
@click.option("--verbose", "-v", is_flag=True, help="Print a receipt on standard error afterwards.")
@json_option("Print one JSON document at the end.")
@click.option("--stream", is_flag=True, help="With --json: JSON lines, as things happen.")
@no_start_option(hidden=True)
@click.pass_obj
def command(
    invocation: Invocation,
    model: str | None,
    prompt: str | None,
    raw: bool,
    backend: str | None,
    context: int | None,
    priority: Priority | None,
    verbose: bool,
    stream: bool,
    stop: tuple[str, ...],
    **sampling: Any,
) -> None:
    """Let a model continue a prompt and print what it says.

    MODEL is a name from `enclave list`, an alias, `folder:name`, or the path of a file: whatever has a separator, ends
    in .gguf or .onnx, or is a file. Without it, the daemon's default model. A single argument is always the MODEL.

    PROMPT may come from a pipe instead. With both, the PROMPT stands first, then a blank line, then the piped text,
    which loses one final newline. Without either, on a terminal, `>>>` asks for prompts until Ctrl-D; each stands for
    itself.

    Standard output gets the answer's text and nothing else: into a file or a pipe exactly the text; on a terminal one
    newline at its end, and control characters replaced. All the rest goes to standard error.

    Ctrl-C cancels the answer, not the daemon.

    \b
    Examples:
      enclave run tiny "Once upon a time"
      enclave run tiny "Once upon a time" --temperature 0 --max-tokens 64
      enclave run ./some.gguf < question.txt > answer.txt
      git diff | enclave run folder:coder "Describe this change:"
      enclave run tiny "A list: " --stop $'\\n' --json | jq -r .text
      enclave run tiny -- "- begins with a dash"
    """
    if stream and not invocation.json:
        raise usage("--stream goes with --json", "text is printed as it comes anyway")
    invocation.json_lines = stream
    options = {**sampling, "stop": stop or None, "backend": backend, "context": context}
    wish = Wish(
        options=cast("SamplingOptions", {name: value for name, value in options.items() if value is not None}),
        raw=raw,
        stream=stream,
        verbose=verbose,
        priority=priority or ("interactive" if sys.stdout.isatty() else "normal"),
    )
    if model is not None:
        reference(model)  # refused before the daemon is started for it
    text = joined(prompt, read_piped(invocation.note))
    if text == "":
        raise usage("the prompt is empty", _call_for(model))
    asks = text is None and _is_terminal()
    if asks and (invocation.json or not sys.stdout.isatty()):
        invocation.note("type the prompt, Ctrl-D ends it")
        text, asks = read_terminal().removesuffix("\n") or None, False
    if text is None and not asks:
        raise usage("there is no prompt", _call_for(model))
    with invocation.client(wish.priority) as client:
        try:
            if text is not None:
                _run_once(invocation, client, _chosen(client, model), text, wish)
            else:
                _ask(invocation, client, _chosen(client, model), wish)
        except Exception as error:
            raise _helped(error, model, prompt) from error


def _run_once(invocation: Invocation, client: Daemon, model: str, prompt: str, wish: Wish) -> None:
    answer(invocation, client, model, prompt, wish)
    if _tells_of_templates(invocation, wish):
        from enclave.exceptions import EnclaveError

        # Asked for afterwards, so that the answer doesn't wait for it; and whether it works is not the answer's matter.
        with suppress(EnclaveError):
            _tell_of_template(invocation, client.show(model))


def _ask(invocation: Invocation, client: Daemon, model: str, wish: Wish) -> None:
    from enclave_cli.prompt_loop import prompt_loop

    shown = client.show(model)  # so that a model which is not there is told before a person starts to type
    if _tells_of_templates(invocation, wish):
        _tell_of_template(invocation, shown)
    prompt_loop(lambda prompt: answer(invocation, client, model, prompt, wish))


def _tells_of_templates(invocation: Invocation, wish: Wish) -> bool:
    return not wish.raw and not invocation.json and sys.stderr.isatty()


def _tell_of_template(invocation: Invocation, shown: ModelShow) -> None:
    if shown.header is not None and shown.header.template:
        invocation.note(TEMPLATE_NOTE)


def answer(invocation: Invocation, client: Daemon, model: str, prompt: str, wish: Wish) -> None:
    """One request from its sending to its end. Whatever ends it early cancels the request."""
    with StatusLine(sys.stderr) as status:
        sink: Sink
        if not invocation.json:
            sink = TextSink(status, model)
        elif wish.stream:
            sink = LinesSink()
        else:
            sink = DocumentSink(status, model)
        result, receipt = _answered(client, model, prompt, wish, sink)
    if wish.verbose:
        sys.stderr.write(receipt_text(result, receipt) + "\n")
        sys.stderr.flush()


def _answered(client: Daemon, model: str, prompt: str, wish: Wish, sink: Sink) -> tuple[Answer, dict[str, object]]:
    options: SamplingOptions = {**wish.options, "progress": sink.progress}
    stream = client.generate(model, prompt, **options)
    try:
        for chunk in stream:
            sink.chunk(chunk)
        result = stream.result()
        receipt = plain_map(result.receipt)
        sink.result(result, receipt)
    except BaseException:
        stream.cancel()
        raise
    finally:
        sink.close()
    return result, receipt


def receipt_text(result: Answer, receipt: dict[str, Any]) -> str:
    """The receipt for a person, one fact a line."""
    usage_, timings = result.usage, result.timings
    model = str(receipt.get("model") or "")
    if receipt.get("model_hash"):
        model += f" ({receipt['model_hash']})"
    tokens = f"{count(usage_.prompt_tokens)} prompt"
    if usage_.cached_tokens:
        tokens += f" ({count(usage_.cached_tokens)} from the cache)"
    tokens += f", {count(usage_.completion_tokens)} answer"
    decoding = timings.decoding_seconds or receipt.get("decoding_seconds")
    prompt = timings.prompt_seconds or receipt.get("prompt_seconds")
    computed = usage_.prompt_tokens - usage_.cached_tokens
    speeds = [("prompt", rate(computed, prompt)), ("answer", rate(usage_.completion_tokens, decoding))]
    times = [
        ("queued", receipt.get("queued_seconds")),
        ("loading", receipt.get("loading_seconds")),
        ("prompt", prompt),
        ("first token", timings.first_token_seconds),
        ("answer", decoding),
    ]
    return facts(
        [
            ("model", model),
            ("backend", str(receipt.get("backend") or "")),
            ("device", str(receipt.get("device") or "")),
            ("instance", str(receipt.get("instance") or "")),
            ("tokens", tokens),
            ("speed", ", ".join(f"{speed} {name}" for name, speed in speeds if speed != NOTHING)),
            ("times", ", ".join(f"{name} {duration(seconds)}" for name, seconds in times if seconds is not None)),
            ("finish", str(result.finish_reason)),
        ]
    )


def _chosen(client: Daemon, model: str | None) -> str:
    if model is not None:
        return reference(model)
    for entry in client.models():
        if entry.default:
            return entry.name
    raise CommandError(
        Problem(
            "model_not_found", "no model was named, and there is no default model", "`enclave list` shows the models"
        )
    )


def _call_for(model: str | None) -> str:
    """The hint to a run without a prompt."""
    if model is None:
        return 'enclave run MODEL "Once upon a time"'
    if looks_like_a_prompt(model):
        return f"a single argument is the MODEL: enclave run MODEL {_quoted(model)}"
    return f'enclave run {shlex.quote(model)} "PROMPT"'


def _helped(error: Exception, model: str | None, prompt: str | None) -> Exception:
    """The error, with a better hint where a lone argument was perhaps meant as the prompt."""
    problem = problem_of(error)
    if problem.code not in _NOT_RESOLVED or not model or prompt is not None:
        return error
    meant = f"a single argument is the MODEL; to give a prompt as well: enclave run MODEL {_quoted(model)}"
    return with_hint(error, meant if looks_like_a_prompt(model) or not problem.hint else f"{problem.hint} ({meant})")


def _quoted(text: str) -> str:
    short = text if len(text) <= 40 else text[:39] + "…"
    return '"' + short.replace('"', '\\"') + '"'


def _is_terminal() -> bool:
    return sys.stdin is not None and not sys.stdin.closed and sys.stdin.isatty()  # pyright: ignore[reportUnnecessaryComparison]
