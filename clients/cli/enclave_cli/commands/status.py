"""`enclave status`: whether a daemon runs, and which."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from enclave_cli.errors import ExitCode
from enclave_cli.invocation import Invocation, json_option, no_start_option
from enclave_cli.output import count, duration, facts
from enclave_cli.running import NONE_RUNS, running_daemon

if TYPE_CHECKING:
    from enclave.paths import Places
    from enclave.protocol.bodies import DaemonInfo, HealthResult


@click.command("status")
@json_option("Print one JSON document: {running: …, pid: …, …}.")
@no_start_option(hidden=True)
@click.pass_obj
def command(invocation: Invocation) -> None:
    """Tell whether a daemon is running, and which.

    None is started for it. The exit code is 0 when one runs, and 4 when none does or it does not answer. Told either
    way is where its log and its configuration are.

    \b
    Examples:
      enclave status
      enclave status --json | jq .pid
      enclave status > /dev/null && echo "it runs"
    """
    from enclave.paths import places

    where = places(os.environ)
    with running_daemon(invocation) as client:
        info = client.info() if client is not None else None
        health = client.health() if client is not None else None
    if invocation.json:
        invocation.print_json(document(where, info, health))
    else:
        invocation.print(text(where, info, health))
    if info is None:
        raise click.exceptions.Exit(ExitCode.UNREACHABLE)


def document(where: Places, info: DaemonInfo | None, health: HealthResult | None) -> dict[str, object]:
    """The same fields whether it runs or not; null is what is not known then."""
    return {
        "running": info is not None,
        "pid": info and info.pid,
        "version": info and info.version,
        "protocol": info and info.protocol,
        "endpoint": info and info.endpoint,
        "executable": info and info.executable,
        "home": info.home if info is not None else str(where.home),
        "log_file": str(where.log_file),
        "config_file": str(where.config_file),
        "uptime_seconds": health and health.uptime_seconds,
        "sessions": info and info.sessions,
        "instances": health and health.instances,
        "requests_running": health and health.running,
        "requests_queued": health and health.queued,
        "status": health and health.status,
        "problems": health and health.problems,
    }


def text(where: Places, info: DaemonInfo | None, health: HealthResult | None) -> str:
    """One fact a line; of a daemon that does not run, where its files are."""
    places = [("log", str(where.log_file)), ("config", str(where.config_file))]
    if info is None or health is None:
        return "\n".join([NONE_RUNS, facts([("home", str(where.home)), *places])])
    return facts(
        [
            ("daemon", f"running, {health.status}"),
            ("pid", str(info.pid)),
            ("version", info.version),
            ("outdated", info.outdated),
            ("up", duration(health.uptime_seconds)),
            ("endpoint", info.endpoint),
            ("home", info.home),
            *places,
            ("sessions", count(info.sessions)),
            ("instances", count(health.instances)),
            ("running", count(health.running)),
            ("queued", count(health.queued)),
            *(("problem", problem) for problem in health.problems),
        ]
    )
