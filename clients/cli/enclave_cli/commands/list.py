"""`enclave list`: which models can be run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from enclave_cli.invocation import Invocation, json_option, no_start_option
from enclave_cli.output import size, table

if TYPE_CHECKING:
    from enclave.protocol.bodies import ModelInfo

NO_MODELS = "No models yet. `enclave run /path/to/model.gguf` runs a file from where it is."


@click.command("list")
@json_option("Print one JSON document: {models: […]}.")
@no_start_option(hidden=True)
@click.pass_obj
def command(invocation: Invocation) -> None:
    """List the models that can be run.

    A star marks the model that is taken when none is named. A model's own file can be run as well, by its path,
    without being listed.

    \b
    Examples:
      enclave list
      enclave list --json | jq -r '.models[].name'
    """
    with invocation.client() as client:
        models = client.models()
    if invocation.json:
        invocation.print_json({"models": models})
    else:
        invocation.print(text(models))


def text(models: Sequence[ModelInfo]) -> str:
    """The table of models, in the daemon's order."""
    if not models:
        return NO_MODELS
    return table(
        ("", "name", "source", "size", "backends", "aliases", "note"),
        [
            (
                "*" if model.default else "",
                model.name,
                model.source,
                size(model.size),
                ", ".join(model.backends),
                ", ".join(model.aliases),
                model.note,
            )
            for model in models
        ],
        right=("size",),
    )
