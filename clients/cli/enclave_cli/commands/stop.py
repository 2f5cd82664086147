"""`enclave stop`: end the daemon."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from enclave_cli.errors import problem_of
from enclave_cli.invocation import Invocation, json_option, no_start_option
from enclave_cli.running import NONE_RUNS, awaited, busy_instances, running_daemon
from enclave_cli.status_line import StatusLine

if TYPE_CHECKING:
    from enclave_cli.daemon import Daemon

_GONE = frozenset({"connection_lost", "shutting_down"})
"""What a daemon is found to be in the middle of that somebody else ends."""


@click.command("stop")
@click.option("--now", is_flag=True, help="Don't wait for requests: they are cancelled.")
@json_option("Print one JSON document: {stopped: …, pid: …}.")
@no_start_option(hidden=True)
@click.pass_obj
def command(invocation: Invocation, now: bool) -> None:
    """End the daemon.

    Requests that run or wait are finished first, also those that come meanwhile; on a terminal it says whose they are.
    With Ctrl-C while it waits, the daemon stays. The command ends when the daemon has. Where none runs, none is
    started, and that is no error.

    \b
    Examples:
      enclave stop
      enclave stop --now
    """
    pid = _stopped(invocation, now)
    if invocation.json:
        invocation.print_json({"stopped": pid is not None, "pid": pid})
    else:
        invocation.print(NONE_RUNS if pid is None else f"The daemon (pid {pid}) has ended.")


def _stopped(invocation: Invocation, now: bool) -> int | None:
    """The process id of the daemon that has ended; None when none ran."""
    with running_daemon(invocation) as client, StatusLine(sys.stderr) as status:
        if client is None:
            return None
        from enclave.exceptions import EnclaveError

        pid = client.info().pid
        with _end_of(pid) as wait_until_ended:
            try:
                if not now:
                    _wait_until_idle(client, status)
                status.show("waiting for the daemon's end")
                client.shutdown(now=now)
            except EnclaveError as error:
                if problem_of(error).code not in _GONE:
                    raise
            wait_until_ended()
        return pid


@contextmanager
def _end_of(pid: int) -> Generator[Callable[[], object]]:
    """What waits for the end of a daemon that runs now."""
    # Where the system can wait for this very process, no lock is taken that the next daemon would find taken.
    try:
        process = os.pidfd_open(pid)
    except (AttributeError, OSError):
        from enclave.discovery import wait_until_ended
        from enclave.paths import places

        yield lambda: wait_until_ended(places(os.environ))
        return
    try:
        yield lambda: select.select([process], [], [])
    finally:
        os.close(process)


def _wait_until_idle(client: Daemon, status: StatusLine) -> None:
    for busy in busy_instances(client.events("instances")):
        if not busy:
            return
        status.show(awaited(busy, queued=True))
