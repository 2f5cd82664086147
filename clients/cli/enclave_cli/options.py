"""Options that several commands share: how tokens are drawn, whose turn it is, and how an answer is printed."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import click

from enclave_cli.errors import usage
from enclave_cli.invocation import COUNT_MAX, Decorated, Invocation, Priority, json_option

_SEED_MAX = 2**64 - 1
_COUNT = click.IntRange(0, COUNT_MAX)


def sampling_options(function: Decorated) -> Decorated:
    """The options that say how tokens are drawn and when to stop."""
    return _with(
        function,
        click.option(
            "--max-tokens",
            "-n",
            type=_COUNT,
            metavar="N",
            help="Tokens of answer at most; by default as many as the context has room for.",
        ),
        click.option(
            "--temperature",
            "-t",
            type=click.FloatRange(min=0),
            metavar="F",
            help="0 takes the likeliest token always; by default 0.8.",
        ),
        click.option(
            "--seed",
            type=click.IntRange(0, _SEED_MAX),
            metavar="N",
            help="The same seed draws the same answer; by default a random one.",
        ),
        click.option("--top-k", type=_COUNT, metavar="N", help="Draw from the N likeliest; 0 is off, by default 40."),
        click.option(
            "--top-p",
            type=click.FloatRange(0, 1),
            metavar="F",
            help="Draw from the likeliest that make up F; 1 is off, by default 0.95.",
        ),
        click.option(
            "--min-p",
            type=click.FloatRange(0, 1),
            metavar="F",
            help="Leave out what is less than F times as likely as the likeliest; 0 is off, by default 0.05.",
        ),
        click.option("--stop", multiple=True, metavar="TEXT", help="End before this text. May be given again."),
    )


def request_options(function: Decorated) -> Decorated:
    """The options that any request to a model has."""
    return _with(
        function,
        click.option("--backend", metavar="NAME", help="Only this backend will do; `enclave plugins` lists them."),
        click.option("--context", type=click.IntRange(1, COUNT_MAX), metavar="N", help="Tokens of context wished for."),
        click.option(
            "--priority",
            type=click.Choice(["interactive", "normal", "background"]),
            help="Whose turn it is.  [default: interactive on a terminal, else normal]",
        ),
    )


def answer_options(function: Decorated) -> Decorated:
    """All options of a command whose answer streams; answers.py:wish_of takes them."""
    return _with(
        function,
        sampling_options,
        request_options,
        click.option("--verbose", "-v", is_flag=True, help="Print a receipt on standard error afterwards."),
        json_option("Print one JSON document at the end."),
        stream_option,
    )


def stream_option(function: Decorated) -> Decorated:
    """`--stream`, for commands that tell something while they work."""
    return click.option("--stream", is_flag=True, help="With --json: JSON lines, as things happen.")(function)


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """What was said on the command line, as keyword arguments for the client: what was not is left to the daemon."""
    return {name: value for name, value in options.items() if value not in (None, ())}


def check_stream(invocation: Invocation, stream: bool) -> None:
    """Sets how `--stream` wants errors to look. Raises CommandError (usage) where there is no JSON to stream."""
    if stream and not invocation.json:
        raise usage("--stream goes with --json", "people see what happens anyway")
    invocation.json_lines = stream


def usual_priority(wanted: Priority | None) -> Priority:
    """That of the requests: who looks at a terminal waits for the answer."""
    return wanted or ("interactive" if sys.stdout.isatty() else "normal")


def _with(function: Decorated, *options: Any) -> Decorated:
    for option in reversed(options):
        function = option(function)
    return function
