"""`enclave bridge`: the protocol as JSON lines, for programs that have no ZeroMQ."""

from __future__ import annotations

import os
import signal
import sys

import click

from enclave_cli.errors import CommandError, Problem, usage
from enclave_cli.invocation import Invocation, Priority, no_start_option

NAME = "enclave-bridge"


@click.command("bridge")
@click.option("--name", metavar="NAME", default=NAME, help=f"Who asks, as `enclave ps` tells it.  [default: {NAME}]")
@click.option(
    "--priority",
    type=click.Choice(["interactive", "normal", "background"]),
    default="normal",
    help="Of requests that don't say their own.  [default: normal]",
)
@click.option("--json", is_flag=True, expose_value=False, help="Changes nothing: it is always JSON.")
@no_start_option(hidden=True)
@click.pass_obj
def command(invocation: Invocation, name: str, priority: Priority) -> None:
    """Speak the protocol as JSON lines on standard input and output.

    For editors and languages without ZeroMQ: a plugin starts it, writes a line for each message to the daemon and reads
    a line for each message from it. Hello, session token, credit and pings are seen to. `docs/bridge.md` has the format
    and examples for Neovim and Node.

    When standard input ends, subscriptions are cancelled, the other open answers come to their end, and then it ends.
    When nobody reads standard output any more, or with Ctrl-C, all are cancelled.

    \b
    Examples:
      enclave bridge --name my-editor --priority interactive
      echo '{"type": "request", "id": 1, "method": "models.list"}' | enclave bridge
    """
    if os.name != "posix":
        # Elsewhere nothing can wait for a pipe and a socket at once.
        raise CommandError(Problem("unsupported", "enclave bridge needs a POSIX system"))
    from enclave.connecting import CONNECT_SECONDS, ClientOptions
    from enclave.exceptions import BadRequestError
    from enclave_cli.bridge_loop import Terminated, bridge

    try:
        options = ClientOptions.make(name, priority, invocation.start, None, CONNECT_SECONDS)
    except BadRequestError as error:
        raise usage(f"--{error.message}") from None
    try:
        code = bridge(options, _standard_input(), sys.stdout.fileno())
    except Terminated:
        # Everything is told and put back: end as any program does that does not mind the signal.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)
        raise
    raise click.exceptions.Exit(code)


def _standard_input() -> int | None:
    if sys.stdin is None or sys.stdin.closed:  # pyright: ignore[reportUnnecessaryComparison] - None when fd 0 is closed
        return None
    return sys.stdin.fileno()
