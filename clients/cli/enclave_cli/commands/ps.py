"""`enclave ps`: which models are in memory, and what they take."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from enclave_cli.invocation import Invocation, json_option, no_start_option
from enclave_cli.output import LOOSE_COLUMNS_MAX, count, cut, duration, line, shortened, size, table

if TYPE_CHECKING:
    from enclave.protocol.bodies import InstanceInfo, WallsInfo

NOTHING_LOADED = "No model is loaded. The first request loads its model; `enclave load MODEL` does it ahead."

UNNAMED = "unnamed"
NAME_COLUMNS_MAX = 32
"""What is shown of a client's name: it may give itself any, of up to 256 characters."""

_USUAL_WISHES = frozenset({"ready", "loaded"})
_BECOMES = {"unloading": "unloaded"}
"""States that say by themselves what follows."""


@click.command("ps")
@json_option("Print one JSON document: {instances: […]}.")
@no_start_option(hidden=True)
@click.pass_obj
def command(invocation: Invocation) -> None:
    """List the models that are in memory, and what they take.

    MEMORY is measured after loading, ESTIMATED what was reserved before. RUNNING are requests at work, PAUSED
    those whose client does not read what they have made, QUEUED those that wait; CLIENTS says whose they are, and how
    many. WALLS tells how the worker process is confined: full, or what
    this system could not give.

    \b
    Examples:
      enclave ps
      enclave ps --json | jq '.instances[] | [.model, .memory.measured_bytes]'
    """
    with invocation.client() as client:
        instances = client.instances()
    if invocation.json:
        invocation.print_json({"instances": instances})
    else:
        invocation.print(text(instances, terminal=sys.stdout.isatty()))


def text(instances: Sequence[InstanceInfo], *, terminal: bool = False) -> str:
    """The table of instances; a column that says nothing of any of them is left out, and on a terminal a long path
    of a model is shortened."""
    if not instances:
        return NOTHING_LOADED
    headings = (
        "model", "state", "backend", "device", "memory", "estimated", "running", "paused", "queued", "clients",
        "threads", "context", "up", "walls", "pid", "id",
    )  # fmt: skip
    return table(
        headings,
        [
            (
                shortened(line(instance.model), LOOSE_COLUMNS_MAX) if terminal else instance.model,
                state(instance),
                instance.backend,
                instance.device or "",
                size(instance.memory.measured_bytes),
                size(instance.memory.estimated_bytes),
                str(instance.leases - instance.paused),
                str(instance.paused) if instance.paused else "",
                str(instance.queued),
                clients(instance),
                count(instance.threads),
                count(instance.context),
                duration(instance.loaded_seconds),
                walls(instance.walls),
                "" if instance.pid is None else str(instance.pid),
                instance.id,
            )
            for instance in instances
        ],
        right=("memory", "estimated", "running", "paused", "queued", "threads", "context", "up", "pid"),
        loose=("model",),
    )


def state(instance: InstanceInfo) -> str:
    """What it is and, where that differs from being ready, what it is to become."""
    words = [instance.state]
    if instance.wanted not in _USUAL_WISHES and instance.wanted != _BECOMES.get(instance.state, instance.state):
        words.append(f"to be {instance.wanted}")
    if instance.pinned:
        words.append("pinned")
    return ", ".join(words)


def clients(instance: InstanceInfo) -> str:
    """`my-editor (2), enclave-cli (1)`: who has requests there and how many, each name once."""
    counts: dict[str, int] = {}
    for asker in instance.askers:
        name = cut(line(asker.name), NAME_COLUMNS_MAX) or UNNAMED
        counts[name] = counts.get(name, 0) + asker.running + asker.queued
    return ", ".join(f"{name} ({number})" for name, number in counts.items())


def walls(info: WallsInfo | None) -> str:
    """`full`, or `partial (no landlock)`."""
    if info is None:
        return ""
    return f"{info.state} (no {', '.join(info.missing)})" if info.missing else info.state
