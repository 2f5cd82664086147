"""`enclave run`: let a model continue a prompt, or answer a conversation, and print what it says."""

from __future__ import annotations

import shlex
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from enclave_cli.answers import Wish, answer, wish_of
from enclave_cli.errors import CommandError, Problem, problem_of, usage, with_hint
from enclave_cli.inputs import is_terminal, read_messages, read_piped, read_schema, read_tools, read_typed
from enclave_cli.invocation import Invocation, no_start_option
from enclave_cli.options import answer_options
from enclave_cli.prompts import joined
from enclave_cli.references import looks_like_a_prompt, reference

if TYPE_CHECKING:
    from enclave.protocol.bodies import ModelShow
    from enclave_cli.daemon import Daemon

PROMPT = "the prompt's text"
TEMPLATE_NOTE = "the model's chat template is not applied yet (--raw silences this)"
_NOT_RESOLVED = frozenset({"model_not_found", "bad_reference", "model_unreadable"})


@click.command("run")
@click.argument("model", required=False)
@click.argument("prompt", required=False)
@click.option("--raw", is_flag=True, help="Apply no chat template.")
@click.option("--messages", metavar="FILE", help="A conversation as JSON instead of a PROMPT; - is standard input.")
@click.option("--tools", metavar="FILE", help="With --messages: functions that the model may call, as JSON.")
@click.option("--schema", metavar="FILE", help="With --messages: the JSON schema that the answer must fit.")
@answer_options
@click.option("--ignore-eos", is_flag=True, default=None, help="Go on where the model would end.")
@click.option("--choices", type=click.IntRange(1, 256), metavar="N", help="With --json: N answers from one prompt.")
@click.option(
    "--overflow",
    type=click.Choice(["error", "truncate", "shift"]),
    help="For what the context does not hold: refuse it, leave out the oldest of the prompt, or of the answer too.  "
    "[default: error]",
)
@click.option("--keep", type=click.IntRange(0), metavar="N", help="With --overflow: tokens at the start to keep.")
@no_start_option(hidden=True)
@click.pass_obj
def command(
    invocation: Invocation,
    model: str | None,
    prompt: str | None,
    raw: bool,
    messages: str | None,
    tools: str | None,
    schema: str | None,
    **options: Any,
) -> None:
    """Let a model continue a prompt and print what it says.

    MODEL is a name from `enclave list`, an alias, `folder:name`, or the path of a file: whatever has a separator, ends
    in .gguf or .onnx, or is a file. Without it, the daemon's default model. A single argument is always the MODEL.

    PROMPT may come from a pipe instead. With both, the PROMPT stands first, then a blank line, then the piped text,
    which loses one final newline. Without either, on a terminal, `>>>` asks for prompts until Ctrl-D; each stands for
    itself.

    With --messages, a conversation is answered instead: a JSON array of messages with their `role` and `content`, which
    the model's template renders.

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
      enclave run folder:chatty --messages talk.json --tools tools.json
    """
    wish = wish_of(invocation, **options)
    if model is not None:
        reference(model)  # refused before the daemon is started for it
    if messages is not None:
        _check_conversation(prompt, raw)
        _converse(invocation, model, wish, messages, tools, schema)
        return
    if tools is not None or schema is not None:
        raise usage(
            f"--{'tools' if tools is not None else 'schema'} goes with --messages",
            "a prompt is taken as it is: give the conversation as JSON",
        )
    text = joined(prompt, read_piped(invocation.note, PROMPT))
    if text == "":
        raise usage("the prompt is empty", _call_for(model))
    asks = text is None and is_terminal()
    if asks and (invocation.json or not sys.stdout.isatty()):
        text, asks = joined(None, read_typed(invocation.note, "the prompt")), False
    if text is None and not asks:
        raise usage("there is no prompt", _call_for(model))
    with invocation.client(wish.priority) as client:
        try:
            if text is not None:
                _run_once(invocation, client, _chosen(client, model), text, wish, raw=raw)
            else:
                _ask(invocation, client, _chosen(client, model), wish, raw=raw)
        except Exception as error:
            raise _helped(error, model, prompt) from error


def _check_conversation(prompt: str | None, raw: bool) -> None:
    if prompt is not None:
        raise usage(
            "a PROMPT and --messages exclude each other", "put the prompt into the conversation, as its last message"
        )
    if raw:
        raise usage("--raw and --messages exclude each other", "a conversation is always rendered by a template")


def _converse(
    invocation: Invocation, model: str | None, wish: Wish, messages: str, tools: str | None, schema: str | None
) -> None:
    conversation = read_messages(messages, invocation.note)
    callable_tools, wanted = read_tools(tools), read_schema(schema)
    with invocation.client(wish.priority) as client:
        name = _chosen(client, model)
        answer(
            invocation,
            name,
            wish,
            lambda options: client.chat(name, conversation, tools=callable_tools, schema=wanted, **options),
        )


def _generate(invocation: Invocation, client: Daemon, model: str, prompt: str, wish: Wish) -> None:
    answer(invocation, model, wish, lambda options: client.generate(model, prompt, **options))


def _run_once(invocation: Invocation, client: Daemon, model: str, prompt: str, wish: Wish, *, raw: bool) -> None:
    _generate(invocation, client, model, prompt, wish)
    if _tells_of_templates(invocation, raw):
        from enclave.exceptions import EnclaveError

        # Asked for afterwards, so that the answer doesn't wait for it; and whether it works is not the answer's matter.
        with suppress(EnclaveError):
            _tell_of_template(invocation, client.show(model))


def _ask(invocation: Invocation, client: Daemon, model: str, wish: Wish, *, raw: bool) -> None:
    from enclave_cli.prompt_loop import prompt_loop

    shown = client.show(model)  # so that a model which is not there is told before a person starts to type
    if _tells_of_templates(invocation, raw):
        _tell_of_template(invocation, shown)
    prompt_loop(lambda prompt: _generate(invocation, client, model, prompt, wish))


def _tells_of_templates(invocation: Invocation, raw: bool) -> bool:
    return not raw and not invocation.json and sys.stderr.isatty()


def _tell_of_template(invocation: Invocation, shown: ModelShow) -> None:
    if shown.header is not None and shown.header.template:
        invocation.note(TEMPLATE_NOTE)


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
