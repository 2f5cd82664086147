"""`enclave downloads`: which models are being fetched, and how to end one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click

from enclave_cli.invocation import Invocation, json_option, no_start_option
from enclave_cli.output import line, measure, table

NO_DOWNLOADS = "Nothing is being fetched. `enclave pull REFERENCE` fetches a model."


@click.group("downloads", invoke_without_command=True)
@json_option("Print one JSON document: {downloads: […]}.")
@no_start_option(hidden=True)
@click.pass_context
@click.pass_obj
def command(invocation: Invocation, ctx: click.Context) -> None:
    """List the models that are being fetched, or end one.

    Shown are those that wait, those that come, and those that failed. `cancel` ends the one with this ID.

    \b
    Examples:
      enclave downloads
      enclave downloads cancel d3
      enclave downloads --json | jq '.downloads[]'
    """
    if ctx.invoked_subcommand is not None:
        return
    with invocation.client() as client:
        downloads = client.downloads()
    if invocation.json:
        invocation.print_json({"downloads": downloads})
    else:
        invocation.print(text(downloads))


@command.command("cancel")
@click.argument("download", metavar="ID")
@json_option("Print one JSON document: {cancelled: ID}.")
@no_start_option(hidden=True)
@click.pass_obj
def cancel(invocation: Invocation, download: str) -> None:
    """End the download with this ID.

    \b
    Examples:
      enclave downloads cancel d3
    """
    with invocation.client() as client:
        client.cancel_download(download)
    if invocation.json:
        invocation.print_json({"cancelled": download})
    else:
        invocation.print(f"{line(download)} was cancelled")


def text(downloads: Sequence[Mapping[str, object]]) -> str:
    """One line a download, with whatever the daemon tells of it."""
    if not downloads:
        return NO_DOWNLOADS
    names = list(dict.fromkeys(name for row in downloads for name in row))
    return table(
        [name.replace("_", " ") for name in names],
        [["" if row.get(name) is None else measure(name, row[name]) for name in names] for row in downloads],
    )
