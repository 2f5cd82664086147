"""The daemon that runs, for commands that never start one, and the requests that run in it."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from enclave_cli.errors import problem_of
from enclave_cli.invocation import Invocation
from enclave_cli.output import count, cut, line

if TYPE_CHECKING:
    from enclave.protocol.bodies import EventChunk, InstanceInfo
    from enclave_cli.daemon import Daemon

NONE_RUNS = "No daemon is running."

_NAMES_COLUMNS_MAX = 60


@contextmanager
def running_daemon(invocation: Invocation) -> Generator[Daemon | None]:
    """A client of the daemon that runs; None when none does. Raises EnclaveError for one that does not answer."""
    invocation.start = False
    with ExitStack() as stack:
        try:
            client = stack.enter_context(invocation.client())
        except Exception as error:
            if problem_of(error).code != "daemon_unavailable" or _listens():
                raise
            client = None
        yield client


def _listens() -> bool:
    from enclave.discovery import running
    from enclave.paths import places

    return running(places(os.environ)) is not None


def busy_instances(events: Iterable[EventChunk]) -> Generator[list[InstanceInfo]]:
    """The instances with requests at work or waiting, after each event of the topic `instances`."""
    from enclave.protocol.bodies import InstanceInfo
    from enclave.protocol.codec import decode

    things: dict[str, object] = {}
    for event in events:
        if event.name == "behind":
            continue  # a snapshot follows
        data: Mapping[str, object] = event.data or {}
        if event.name == "snapshot":
            things = dict(data)
        elif event.name == "removed":
            things.pop(event.key or "", None)
        else:
            things[event.key or ""] = data
        instances = [decode(InstanceInfo, thing) for thing in things.values()]
        yield [instance for instance in instances if instance.leases or instance.queued]


def awaited(instances: Iterable[InstanceInfo], *, queued: bool = False) -> str:
    """`waiting for 2 requests of my-editor, enclave-cli`, with those that are `queued` too; empty where there are
    none."""
    instances = list(instances)
    requests = sum(instance.leases for instance in instances)
    if queued:  # each instance of a model tells the whole queue for it
        requests += sum({instance.model: instance.queued for instance in instances}.values())
    names = dict[str, None]()
    for asker in (asker for instance in instances for asker in instance.askers):
        if asker.name.strip() and (asker.running or (queued and asker.queued)):
            names[line(asker.name)] = None
    if not requests:
        return ""
    whose = f" of {cut(', '.join(names), _NAMES_COLUMNS_MAX)}" if names else ""
    return f"waiting for {count(requests)} request{'' if requests == 1 else 's'}{whose}"
