"""`enclave unload MODEL`: give a model's memory back."""

from __future__ import annotations

import click

from enclave_cli.invocation import Invocation, json_option, no_start_option
from enclave_cli.output import line
from enclave_cli.references import reference


@click.command("unload")
@click.argument("model")
@json_option("Print one JSON document: {unloaded: [instance, …]}.")
@no_start_option(hidden=True)
@click.pass_obj
def command(invocation: Invocation, model: str) -> None:
    """Take a model out of memory.

    Requests that run are finished first. The model's files stay, and the next request loads it again. A model that is
    not loaded is an error.

    \b
    Examples:
      enclave unload tiny
      enclave unload ./some.gguf
    """
    with invocation.client() as client:
        result = client.unload(reference(model))
    if invocation.json:
        invocation.print_json(result)
    elif result.unloaded:
        invocation.print(f"{line(model)} was unloaded")
    else:
        invocation.print(f"{line(model)} was not loaded")
