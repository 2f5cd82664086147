"""Options that several commands share: how tokens are drawn, whose turn it is, and how an answer is printed."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from enclave_cli.errors import usage
from enclave_cli.invocation import COUNT_MAX, Decorated, Invocation, Priority, json_option

_SEED_MAX = 2**64 - 1
_COUNT = click.IntRange(0, COUNT_MAX)
LOGPROBS_MAX = 100
_KINDS: Mapping[str, type[float] | type[int]] = {
    "typical_p": float,
    "repeat_penalty": float,
    "frequency_penalty": float,
    "presence_penalty": float,
    "penalty_last_n": int,
    "dry_multiplier": float,
    "dry_base": float,
    "dry_allowed_length": int,
    "dry_last_n": int,
    "xtc_probability": float,
    "xtc_threshold": float,
    "mirostat": int,
    "mirostat_tau": float,
    "mirostat_eta": float,
}
"""What `--set` takes, by the protocol's names; the daemon checks the bounds."""


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
        click.option(
            "--set",
            "settings",
            multiple=True,
            metavar="NAME=VALUE",
            callback=_settings,
            help=f"Another setting of the draw: {', '.join(_KINDS)}. May be given again.",
        ),
        click.option(
            "--logprobs",
            type=click.IntRange(0, LOGPROBS_MAX),
            metavar="N",
            help="With --json: each token's log probability, and those of the N likeliest.",
        ),
        click.option("--stop", multiple=True, metavar="TEXT", help="End before this text. May be given again."),
    )


def _settings(context: click.Context, parameter: click.Parameter, pairs: Sequence[str]) -> dict[str, float | int]:
    return sampling_settings(pairs)


def sampling_settings(pairs: Sequence[str]) -> dict[str, float | int]:
    """What `--set` says. Raises click.BadParameter, with the names that there are."""
    settings: dict[str, float | int] = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        name = name.strip().replace("-", "_")
        kind = _KINDS.get(name)
        if kind is None:
            raise click.BadParameter(f"{name!r} is none of {', '.join(_KINDS)}")
        try:
            settings[name] = kind(value)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise click.BadParameter(f"{name} takes {what}, not {value!r}") from None
    return settings


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
    settings: Mapping[str, Any] = options.get("settings") or {}
    others = {name: value for name, value in options.items() if name != "settings"}
    return {name: value for name, value in {**others, **settings}.items() if value not in (None, ())}


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
