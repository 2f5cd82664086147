"""`enclave plugins`: what is installed, and why one failed to load."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from enclave_cli.invocation import Invocation, json_option, no_start_option
from enclave_cli.output import table

if TYPE_CHECKING:
    from enclave.protocol.bodies import PluginInfo

NO_PLUGINS = "No plugin is installed: without a backend no model can be run. `pip install enclaved-llama-cpp` adds one."


@click.command("plugins")
@json_option("Print one JSON document: {plugins: […]}.")
@no_start_option(hidden=True)
@click.pass_obj
def command(invocation: Invocation) -> None:
    """List the plugins, and why one failed to load.

    A plugin that fails is told here and left out; the daemon runs without it. `enclave serve --only a,b` starts the
    daemon with these plugins alone, to find the one that makes trouble.

    \b
    Examples:
      enclave plugins
      enclave plugins --json | jq '.plugins[] | select(.state == "failed")'
    """
    with invocation.client() as client:
        plugins = client.plugins()
    if invocation.json:
        invocation.print_json({"plugins": plugins})
    else:
        invocation.print(text(plugins))


def text(plugins: Sequence[PluginInfo]) -> str:
    """One line a plugin."""
    if not plugins:
        return NO_PLUGINS
    return table(
        ("name", "version", "brings", "state", "problem"),
        [
            (plugin.name, plugin.version, ", ".join(plugin.kinds), plugin.state, plugin.problem or "")
            for plugin in plugins
        ],
    )
