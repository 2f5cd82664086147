"""`enclave pull`: fetch a model and install it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from enclave_cli.errors import usage
from enclave_cli.invocation import Invocation, json_option, no_start_option
from enclave_cli.options import check_stream, stream_option
from enclave_cli.output import facts, plain_map, size
from enclave_cli.sinks import LinesSink
from enclave_cli.status_line import StatusLine
from enclave_cli.transfers import Transfer

if TYPE_CHECKING:
    from enclave.protocol.bodies import PullResult
    from enclave.protocol.messages import Progress


@click.command("pull")
@click.argument("model", metavar="REFERENCE")
@json_option("Print one JSON document at the end: {name, size, path}.")
@stream_option
@no_start_option(hidden=True)
@click.pass_obj
def command(invocation: Invocation, model: str, stream: bool) -> None:
    """Fetch a model and install it.

    REFERENCE names a model where a source has it. On a terminal, one line tells how far it is, how fast it goes and how
    long it will still take. Ctrl-C cancels the request.

    \b
    Examples:
      enclave pull hf:owner/model
      enclave pull hf:owner/model --json | jq -r .name
      enclave pull hf:owner/model --json --stream
    """
    check_stream(invocation, stream)
    if not model.strip():
        raise usage("REFERENCE is empty", "name a model where a source has it; is a variable of the shell unset?")
    with invocation.client() as client, StatusLine(sys.stderr) as status:
        transfer, lines = Transfer(model), LinesSink()

        def show(progress: Progress) -> None:
            if stream:
                lines.progress(progress)
            else:
                status.show(transfer.sentence(progress))

        result = client.pull(model, progress=show).result()
    if invocation.json:
        invocation.print_json({**({"type": "result"} if stream else {}), **plain_map(result)})
    else:
        invocation.print(text(result))


def text(result: PullResult) -> str:
    """What was installed, one fact a line."""
    return facts([("name", result.name), ("size", size(result.size)), ("path", result.path)])
