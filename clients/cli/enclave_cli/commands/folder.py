"""`enclave folder`: where models are found."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from enclave_cli.invocation import Invocation, json_option, no_start_option
from enclave_cli.output import line, table
from enclave_cli.patience import Patience

if TYPE_CHECKING:
    from enclave.protocol.folder_bodies import FolderInfo

NO_FOLDERS = "No folder is looked into. `enclave folder add PATH` adds one."


@click.group("folder", invoke_without_command=True)
@json_option("Print one JSON document: {folders: […]}.")
@no_start_option(hidden=True)
@click.pass_context
@click.pass_obj
def command(invocation: Invocation, ctx: click.Context) -> None:
    """List, add or remove folders in which models are found.

    Files that come, go or change there are noticed while the daemon runs; where the system does not tell of changes, as
    on a network, the folder is looked at from time to time, and the list says so. Nothing in a folder is ever changed.

    \b
    Examples:
      enclave folder
      enclave folder add ~/models
      enclave folder remove ~/models
      enclave folder --json | jq -r '.folders[].path'
    """
    if ctx.invoked_subcommand is None:
        _list(invocation)


@command.command("list")
@json_option("Print one JSON document: {folders: […]}.")
@no_start_option(hidden=True)
@click.pass_obj
def list_folders(invocation: Invocation) -> None:
    """List the folders in which models are found.

    \b
    Examples:
      enclave folder list
    """
    _list(invocation)


@command.command("add")
@click.argument("folder", metavar="PATH", type=click.Path())
@json_option("Print the folder as one JSON document: {path, source, added, models, problem}.")
@no_start_option(hidden=True)
@click.pass_obj
def add(invocation: Invocation, folder: str) -> None:
    """Find models in this folder too, and in those below it.

    It is remembered in `folders.toml` beside the configuration. A folder that was added before is looked at again.

    \b
    Examples:
      enclave folder add ~/models
      enclave folder add .
    """
    path = _absolute(folder)
    with invocation.client() as client, Patience(lambda: f"looking into {line(path)}"):
        added = client.add_folder(path)
    if invocation.json:
        invocation.print_json(added)
    else:
        follows = "`enclave list` shows them" if added.models else "what comes is noticed"
        invocation.print(f"{line(path)}: {_models(added.models)}; {follows}")


@command.command("remove")
@click.argument("folder", metavar="PATH", type=click.Path())
@json_option("Print one JSON document: {removed: PATH}.")
@no_start_option(hidden=True)
@click.pass_obj
def remove(invocation: Invocation, folder: str) -> None:
    """No longer find models in a folder that was added.

    What lies in it stays as it is, and what is loaded from it stays loaded.

    \b
    Examples:
      enclave folder remove ~/models
    """
    path = _absolute(folder)
    with invocation.client() as client, Patience(lambda: f"forgetting {line(path)}"):
        client.remove_folder(path)
    if invocation.json:
        invocation.print_json({"removed": path})
    else:
        invocation.print(f"{line(path)} is no longer looked into; the files in it stay")


def text(folders: Sequence[FolderInfo]) -> str:
    """One line a folder."""
    if not folders:
        return NO_FOLDERS
    return table(
        ("folder", "models", "source", "named by", "changes"),
        [
            (
                folder.path,
                str(folder.models),
                folder.source,
                "enclave folder add" if folder.added else "configuration or link",
                "told by the system" if folder.problem is None else f"looked for: {folder.problem}",
            )
            for folder in folders
        ],
    )


def _list(invocation: Invocation) -> None:
    with invocation.client() as client:
        folders = client.folders()
    if invocation.json:
        invocation.print_json({"folders": folders})
    else:
        invocation.print(text(folders))


def _models(count: int) -> str:
    return f"{count or 'no'} model{'' if count == 1 else 's'}"


def _absolute(folder: str) -> str:
    # Not resolved: a link keeps the name under which its user knows it.
    return os.path.abspath(os.path.expanduser(folder))  # noqa: PTH100, PTH111
