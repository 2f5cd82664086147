"""`enclave events`: what changes, as it changes."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from enclave_cli import stdout
from enclave_cli.changes import Changes
from enclave_cli.errors import CommandError, ExitCode, problem_of
from enclave_cli.invocation import Invocation, json_option, no_start_option
from enclave_cli.output import plain_map

if TYPE_CHECKING:
    from enclave.protocol.bodies import EventChunk

TOPICS = ("models", "instances", "downloads", "hardware")
"""What the protocol has (enclave.protocol.bodies.EVENT_TOPICS), which is not imported for the sake of `--help`."""

_ENDING = "shutting_down"
"""What a daemon says that ends in good order; one that vanishes says nothing."""


@click.command("events")
@click.argument("topics", nargs=-1, type=click.Choice(TOPICS), metavar="[TOPIC]...")
@click.option("--snapshot", is_flag=True, help="Print how things are now, and end.")
@json_option("Print JSON lines, an event each; with --snapshot one document: {topic: {key: {…}}}.")
@no_start_option(hidden=True)
@click.pass_obj
def command(invocation: Invocation, topics: tuple[str, ...], snapshot: bool) -> None:
    """Tell what changes, as it changes.

    TOPIC is models, instances, downloads or hardware; without one, all of them. First comes how things are, then one
    line for each change. It ends with Ctrl-C (exit code 130), or when the daemon ends (4).

    \b
    Examples:
      enclave events
      enclave events instances
      enclave events --snapshot --json | jq .instances
      enclave events instances --json | jq -c 'select(.name == "removed") | .data.model'
    """
    invocation.json_lines = invocation.json and not snapshot
    changes = Changes(terminal=sys.stdout.isatty())
    try:
        with invocation.client() as client:
            if snapshot:
                wanted = tuple(dict.fromkeys(topics)) or TOPICS
                _print_snapshot(invocation, changes, snapshots(client.events(*wanted), wanted))
            else:
                _print_all(invocation, changes, client.events(*topics))
    except Exception as error:
        raise _told_of_the_end(error) from error


def snapshots(events: Iterable[EventChunk], topics: Sequence[str]) -> list[EventChunk]:
    """The first snapshot of each of these topics, in the order in which they come."""
    found: dict[str, EventChunk] = {}
    for event in events:
        if event.name == "snapshot":
            found.setdefault(event.topic, event)
        if found.keys() >= set(topics):
            break
    return list(found.values())


def _print_snapshot(invocation: Invocation, changes: Changes, found: Sequence[EventChunk]) -> None:
    if invocation.json:
        invocation.print_json({event.topic: event.data or {} for event in found})
        return
    invocation.print("\n".join([changes.heading(), *(line for event in found for line in changes.lines(event))]))


def _print_all(invocation: Invocation, changes: Changes, events: Iterable[EventChunk]) -> None:
    if stdout.is_closed():
        raise BrokenPipeError  # nobody would ever end it
    if not invocation.json:
        invocation.print(changes.heading())
    for event in events:
        if invocation.json:
            invocation.print_json({"type": "event", **plain_map(event)})
        else:
            invocation.print("\n".join(changes.lines(event)))


def _told_of_the_end(error: Exception) -> Exception:
    problem = problem_of(error)
    if problem.code != _ENDING:
        return error
    return CommandError(replace(problem, exit_code=ExitCode.UNREACHABLE))
