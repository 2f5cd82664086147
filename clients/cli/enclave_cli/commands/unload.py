"""`enclave unload MODEL`: give a model's memory back."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from enclave_cli.invocation import Invocation, json_option, no_start_option
from enclave_cli.output import line
from enclave_cli.patience import Patience
from enclave_cli.references import reference
from enclave_cli.running import awaited

if TYPE_CHECKING:
    from enclave.protocol.bodies import UnloadResult
    from enclave_cli.daemon import Daemon

_INSTANCE = re.compile(r"i[0-9]{1,18}")
"""An instance as the daemon numbers them."""


@click.command("unload")
@click.argument("model", metavar="MODEL|INSTANCE")
@json_option("Print one JSON document: {unloaded: [instance, …]}.")
@no_start_option(hidden=True)
@click.pass_obj
def command(invocation: Invocation, model: str) -> None:
    """Take a model out of memory.

    It is named as for `enclave run`, or by an instance's id from `enclave ps`. Requests that run are finished first; on
    a terminal it says whose they are. The model's files stay, and the next request loads it again. A model that is not
    loaded is an error.

    \b
    Examples:
      enclave unload tiny
      enclave unload ./some.gguf
      enclave unload i1
    """
    name = reference(model)
    with invocation.client() as client, Patience(lambda: _awaited(client, model)):
        result = _of_instance(client, name) if is_instance(model) else client.unload(name)
    if invocation.json:
        invocation.print_json(result)
    elif result.unloaded:
        invocation.print(f"{line(model)} was unloaded")
    else:
        invocation.print(f"{line(model)} was not loaded")


def is_instance(typed: str, exists: Callable[[str], bool] = os.path.exists) -> bool:
    """Whether it is an instance's id rather than a model: a file of that name wins."""
    return _INSTANCE.fullmatch(typed) is not None and not exists(typed)


def _of_instance(client: Daemon, name: str) -> UnloadResult:
    from enclave.exceptions import InstanceNotFoundError

    try:
        return client.unload(None, instance=name)
    except InstanceNotFoundError:
        if all(name != model.name and name not in model.aliases for model in client.models()):
            raise
        return client.unload(name)


def _awaited(client: Daemon, model: str) -> str:
    leaving = [instance for instance in client.instances() if instance.wanted == "unloaded"]
    return awaited(leaving) or f"unloading {line(model)}"
