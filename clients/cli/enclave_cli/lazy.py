"""The group of commands, each imported only when it is called.

`enclave --help` must not pay for thirty commands, so the short help of each stands in a table here; a test compares
the table with the commands' own words.
"""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Sequence
from typing import cast

import click

from enclave_cli.output import cut, line

COMMANDS: dict[str, str] = {
    "run": "Let a model continue a prompt and print what it says.",
    "infill": "Let a model write what stands between two texts.",
    "embed": "Turn texts into vectors.",
    "rerank": "Order documents by how well they answer a query.",
    "tokenize": "Print a text's token ids, or the text of token ids.",
    "render": "Print what a model would see of a conversation.",
    "bench": "Measure how fast a model is on this machine.",
    "list": "List the models that can be run.",
    "show": "Tell what is known of one model.",
    "folder": "List, add or remove folders in which models are found.",
    "pull": "Fetch a model and install it.",
    "downloads": "List the models that are being fetched, or end one.",
    "ps": "List the models that are in memory, and what they take.",
    "load": "Load a model into memory ahead of its first request.",
    "unload": "Take a model out of memory.",
    "events": "Tell what changes, as it changes.",
    "why": "Tell why a request waited or a model was loaded or unloaded.",
    "plugins": "List the plugins, and why one failed to load.",
    "status": "Tell whether a daemon is running, and which.",
    "stop": "End the daemon.",
    "bridge": "Speak the protocol as JSON lines on standard input and output.",
    "serve": "Run the daemon in the foreground.",
}
"""Name and one sentence of every command, in the order of `enclave --help`."""

NOT_BUILT = frozenset({"infill", "render", "pull", "downloads"})
"""Those whose methods the daemon of this release answers with `unsupported`."""

_SUGGESTION_COLUMNS_MAX = 60


def module_name(command: str) -> str:
    """The module that holds a command, as its attribute `command`."""
    return f"enclave_cli.commands.{command}"


class LazyGroup(click.Group):
    """A click group over COMMANDS."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return cast(click.Command, importlib.import_module(module_name(cmd_name)).command)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(_unknown(args))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(
                [
                    (name, f"{sentence} (not built yet)" if name in NOT_BUILT else sentence)
                    for name, sentence in COMMANDS.items()
                ]
            )


def _unknown(arguments: Sequence[str]) -> str:
    """What is wrong, and what was probably meant: a near command, the help, or a model to run."""
    from difflib import get_close_matches

    from enclave_cli.references import looks_like_a_model, looks_like_a_prompt

    name = arguments[0]
    missing = f"there is no command {cut(line(name), _SUGGESTION_COLUMNS_MAX)!r}"
    if name == "help":
        words = " ".join(["enclave", *(word for word in arguments[1:2] if word in COMMANDS)])
        meant = f"`{words} --help`"
    elif near := get_close_matches(name, COMMANDS, n=1):
        meant = repr(near[0])
    elif looks_like_a_model(name) or any(looks_like_a_prompt(word) for word in arguments[1:]):
        meant = f"`enclave run {cut(line(shlex.join(arguments)), _SUGGESTION_COLUMNS_MAX)}`"
    else:
        return f"{missing}; a model is run with `enclave run`"
    return f"{missing}; did you mean {meant}?"
