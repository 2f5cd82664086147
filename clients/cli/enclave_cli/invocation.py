"""What every command gets: how to reach the daemon, and where its words go.

`main` makes one for each call and puts it on click's context as `obj`. Tests hand in a `connect` of their own; that is
the only seam between the commands and a daemon.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import click

from enclave_cli import stdout
from enclave_cli.output import json_text, line

if TYPE_CHECKING:
    from enclave_cli.daemon import Daemon

Priority = Literal["interactive", "normal", "background"]
Decorated = TypeVar("Decorated", bound=Callable[..., Any])

CLIENT_NAME = "enclave-cli"

COUNT_MAX = 2**31 - 1
"""Of tokens, threads and candidates: what the backends count with."""


class Connect(Protocol):
    """Makes a connected client; it is closed as a context manager."""

    def __call__(self, *, start: bool, priority: Priority) -> Daemon: ...


def connect(*, start: bool, priority: Priority) -> Daemon:
    """A client of the user's daemon, which is started when none runs and `start` allows it.

    Raises EnclaveError `daemon_unavailable`.
    """
    from enclave import Client

    return Client(name=CLIENT_NAME, start=start, priority=priority)


@dataclass
class Invocation:
    """One call of `enclave`."""

    connect: Connect
    start: bool = True
    """Whether a daemon may be started when none runs."""
    json: bool = False
    """Whether standard output is for a program. Known as soon as the option is read, so that errors obey it too."""
    json_lines: bool = False
    """Whether that is a document a line, each with its `type`."""

    @contextmanager
    def client(self, priority: Priority = "normal") -> Generator[Daemon]:
        """A connected client. Whoever waits for that at a terminal is told what for."""
        from enclave_cli.patience import Patience, awaited_daemon

        with Patience(awaited_daemon) as patience, self.connect(start=self.start, priority=priority) as client:
            patience.end()
            yield client

    def print(self, text: str) -> None:
        """A line on standard output; nothing for an empty text."""
        if text:
            stdout.write(text + "\n")

    def print_json(self, value: object) -> None:
        """One JSON document, on a line of its own."""
        self.print(json_text(value))

    def note(self, text: str) -> None:
        """A remark on standard error that is no error."""
        stdout.begin_line_on_stderr()
        sys.stderr.write(f"enclave: {line(text)}\n")
        sys.stderr.flush()


def _set_json(ctx: click.Context, _parameter: click.Parameter, value: bool) -> bool:
    invocation = ctx.find_object(Invocation)
    if invocation is not None and value:
        invocation.json = True
    return value


def _set_start(ctx: click.Context, _parameter: click.Parameter, value: bool) -> bool:
    invocation = ctx.find_object(Invocation)
    if invocation is not None and value:
        invocation.start = False
    return value


def json_option(text: str = "Print one JSON document.") -> Callable[[Decorated], Decorated]:
    """`--json`, read before all other options."""
    return click.option("--json", is_flag=True, is_eager=True, expose_value=False, callback=_set_json, help=text)


def no_start_option(*, hidden: bool = False) -> Callable[[Decorated], Decorated]:
    """`--no-start`: an option of `enclave` itself, taken after the command's name as well."""
    return click.option(
        "--no-start",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        hidden=hidden,
        callback=_set_start,
        help="Don't start a daemon when none runs.",
    )
