"""`enclave infill`: let a model write what stands between two texts."""

from __future__ import annotations

import re
from typing import Any

import click

from enclave_cli.answers import answer, wish_of
from enclave_cli.errors import usage
from enclave_cli.inputs import read_given
from enclave_cli.invocation import Invocation, no_start_option
from enclave_cli.options import answer_options
from enclave_cli.output import line
from enclave_cli.references import reference

_POSITION = re.compile(r"([1-9][0-9]{0,9})(?::([1-9][0-9]{0,9}))?")


def _position(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[int, int | None] | None:
    """`12:5`, the place before the fifth character of line 12; `12`, the end of that line."""
    if value is None:
        return None
    found = _POSITION.fullmatch(value)
    if found is None:
        raise click.BadParameter(f"{line(value)!r} is no LINE and no LINE:COLUMN, each counted from 1.")
    return int(found[1]), int(found[2]) if found[2] else None


@click.command("infill")
@click.argument("model")
@click.option("--file", metavar="FILE", help="The text to be filled in; - is standard input.")
@click.option(
    "--at", callback=_position, metavar="LINE:COLUMN", help="Where in FILE; without :COLUMN, at the end of the line."
)
@click.option("--prefix", metavar="TEXT", help="Instead of FILE: what stands before.")
@click.option("--suffix", metavar="TEXT", help="Instead of FILE: what stands after.")
@click.option(
    "--order",
    type=click.Choice(["auto", "psm", "spm"]),
    default="auto",
    help="Which the model sees first: prefix (psm) or suffix (spm).  [default: as the model is best at]",
)
@answer_options
@no_start_option(hidden=True)
@click.pass_obj
def command(
    invocation: Invocation,
    model: str,
    file: str | None,
    at: tuple[int, int | None] | None,
    prefix: str | None,
    suffix: str | None,
    order: str,
    **options: Any,
) -> None:
    """Let a model write what stands between two texts.

    The place is a line and a column of a file, as an editor shows them, both counted from 1 and columns in characters;
    or --prefix and --suffix are given themselves. The file is not changed. Standard output gets what belongs there and
    nothing else, as with `enclave run`.

    \b
    Examples:
      enclave infill folder:coder --file main.py --at 12:5
      enclave infill folder:coder --file - --at 12 --max-tokens 64 < main.py
      enclave infill folder:coder --prefix "def add(a, b):" --suffix "print(add(1, 2))"
    """
    wish = wish_of(invocation, **options)
    name = reference(model)
    before, after = _parts(invocation, file, at, prefix, suffix)
    with invocation.client(wish.priority) as client:
        answer(
            invocation,
            name,
            wish,
            lambda sampling: client.infill(name, before, after, order=order, **sampling),
        )


def _parts(
    invocation: Invocation,
    file: str | None,
    at: tuple[int, int | None] | None,
    prefix: str | None,
    suffix: str | None,
) -> tuple[str, str]:
    by_text = prefix is not None or suffix is not None
    if by_text and (file is not None or at is not None):
        raise usage("--prefix and --suffix stand instead of --file and --at", "leave out the one pair or the other")
    if by_text:
        return prefix or "", suffix or ""
    if file is None or at is None:
        raise usage(
            "there is nothing to be filled in" if file is None else "--file says no place without --at",
            "name a place, such as --file main.py --at 12:5, or give --prefix and --suffix",
        )
    return parted(read_given(file, invocation.note, "the text"), *at)


def parted(text: str, number: int, column: int | None) -> tuple[str, str]:
    """What stands before and after a place: a line's number and a column, or the line's end, counted from 1.

    Raises CommandError (usage) where there is no such place.
    """
    lines = text.split("\n")
    if number > len(lines):
        raise usage(f"the text ends in line {len(lines):,}, there is no line {number:,}", "--at is LINE:COLUMN")
    length = len(lines[number - 1].removesuffix("\r"))
    if column is None:
        column = length + 1
    if column > length + 1:
        raise usage(
            f"line {number:,} has {length:,} characters, there is no column {column:,}",
            f"--at {number}:{length + 1} is its end",
        )
    start = sum(len(each) + 1 for each in lines[: number - 1]) + column - 1
    return text[:start], text[start:]
