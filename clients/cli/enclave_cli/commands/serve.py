"""`enclave serve`: the daemon in the foreground, in place of this process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import NoReturn

import click

from enclave_cli.invocation import Invocation, json_option


@click.command("serve")
@click.option("--only", metavar="A,B", help="Load these plugins alone.")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="How much the daemon says of its work.",
)
@json_option("Print an error as a JSON document.")
@click.pass_obj
def command(invocation: Invocation, only: str | None, log_level: str | None) -> None:
    """Run the daemon in the foreground.

    Clients start the daemon by themselves and in the background; this is for looking at what it does, and for service
    managers. Ctrl-C ends it. When one runs already for this home, the exit code is 3.

    \b
    Examples:
      enclave serve
      enclave serve --log-level debug
      enclave serve --only builtin,llama_cpp
      ENCLAVE_HOME=~/try enclave serve
    """
    from enclave.discovery import find_daemon
    from enclave.paths import places

    program = find_daemon(places(os.environ), os.environ)
    become([program, *options(only, log_level)])


def options(only: str | None, log_level: str | None) -> list[str]:
    """The options of `enclaved`, for those that were given."""
    given = [("--only", only), ("--log-level", log_level)]
    return [part for name, value in given if value is not None for part in (name, value)]


def become(
    command_line: list[str],
    replace: Callable[[str, list[str]], NoReturn] = os.execv,
    platform: str = sys.platform,
) -> None:
    """Ends as the program. It takes this process over, so that signals and the exit code are its own; where the system
    cannot do that, it runs below and its exit code is passed on."""
    if platform == "win32":
        raise click.exceptions.Exit(subprocess.run(command_line, check=False).returncode)
    replace(command_line[0], command_line)
