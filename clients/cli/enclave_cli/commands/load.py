"""`enclave load MODEL`: have a model in memory before it is needed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from enclave_cli.commands.ps import walls
from enclave_cli.invocation import COUNT_MAX, Invocation, json_option, no_start_option
from enclave_cli.output import count, facts, size
from enclave_cli.progress import shown_on
from enclave_cli.references import reference
from enclave_cli.status_line import StatusLine

if TYPE_CHECKING:
    from enclave.protocol.bodies import LoadResult

KV_TYPES = ("f32", "f16", "q8_0")


@click.command("load")
@click.argument("model")
@click.option(
    "--context",
    type=click.IntRange(1, COUNT_MAX),
    metavar="N",
    help="Tokens that a prompt and its answer may take.",
)
@click.option("--kv-type", type=click.Choice(KV_TYPES), help="Type of the key/value cache.")
@click.option(
    "--flash-attention/--no-flash-attention",
    default=None,
    help="Demand or forbid flash attention; else the backend chooses.",
)
@click.option("--threads", type=click.IntRange(1, COUNT_MAX), metavar="N", help="Compute threads.")
@click.option("--backend", metavar="NAME", help="Only this backend will do; `enclave plugins` lists them.")
@json_option("Print one JSON document: {instance: {…}, already_loaded: …}.")
@no_start_option(hidden=True)
@click.pass_obj
def command(
    invocation: Invocation,
    model: str,
    context: int | None,
    kv_type: str | None,
    flash_attention: bool | None,
    threads: int | None,
    backend: str | None,
) -> None:
    """Load a model into memory ahead of its first request.

    What is left out is left to the daemon, and an instance that is there already will do. A wish that it cannot meet
    loads the model anew. It stays until the memory is needed for something else, or until `enclave unload`.

    \b
    Examples:
      enclave load tiny
      enclave load ./some.gguf --context 8192
      enclave load tiny --backend llama_cpp --threads 1 --no-flash-attention
    """
    name = reference(model)
    with invocation.client() as client, StatusLine(sys.stderr) as status:
        result = client.load(
            name,
            context=context,
            kv_type=kv_type,
            flash_attention=flash_attention,
            threads=threads,
            backend=backend,
            progress=shown_on(status, model),
        ).result()
    if invocation.json:
        invocation.print_json(result)
    else:
        invocation.print(text(result))


def text(result: LoadResult) -> str:
    """What has the model now, one fact a line."""
    instance = result.instance
    memory = instance.memory
    measured = size(memory.measured_bytes) if memory.measured_bytes is not None else None
    if measured and memory.estimated_bytes is not None:
        measured += f" (estimated {size(memory.estimated_bytes)})"
    return facts(
        [
            ("model", instance.model + (" (was loaded already)" if result.already_loaded else "")),
            ("backend", instance.backend),
            ("device", instance.device),
            ("memory", measured),
            ("context", None if instance.context is None else f"{count(instance.context)} tokens"),
            ("threads", None if instance.threads is None else count(instance.threads)),
            ("walls", walls(instance.walls)),
            ("instance", instance.id),
        ]
    )
