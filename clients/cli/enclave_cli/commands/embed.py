"""`enclave embed`: turn texts into vectors."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from enclave_cli.errors import usage
from enclave_cli.inputs import piped_lines
from enclave_cli.invocation import COUNT_MAX, Invocation, Priority, json_option, no_start_option
from enclave_cli.options import given, request_options, usual_priority
from enclave_cli.output import count, cut, line, table
from enclave_cli.progress import shown_on
from enclave_cli.references import reference
from enclave_cli.status_line import StatusLine

if TYPE_CHECKING:
    from enclave.results import Embeddings

TEXT_COLUMNS_MAX = 40
NUMBERS_SHOWN = 4


@click.command("embed")
@click.argument("model")
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option("--normalize/--no-normalize", default=True, help="Make each vector one of length 1.  [default: yes]")
@click.option(
    "--truncate-to", type=click.IntRange(1, COUNT_MAX), metavar="N", help="Cut longer texts to N tokens; else an error."
)
@request_options
@json_option("Print one JSON document: {vectors: [[…]], dimensions, truncated, usage, receipt}.")
@no_start_option(hidden=True)
@click.pass_obj
def command(
    invocation: Invocation,
    model: str,
    texts: tuple[str, ...],
    normalize: bool,
    priority: Priority | None,
    **options: Any,
) -> None:
    """Turn texts into vectors.

    Without a TEXT, the texts come from a pipe, one a line; an empty line is a text too, so that the vectors stand in
    the order of the lines. A table shows each vector's beginning; --json has all of it.

    \b
    Examples:
      enclave embed folder:minilm "Once upon a time" "The end"
      enclave embed folder:minilm --json < lines.txt | jq -c '.vectors[]'
      enclave embed folder:minilm --no-normalize --priority background --json < lines.txt > vectors.json
    """
    name = reference(model)
    wanted = list(texts) or piped_lines(invocation.note, "texts, one a line,")
    if not wanted:
        raise usage(
            "there is no text", f'enclave embed {shlex.quote(model)} "Once upon a time", or pipe texts in, one a line'
        )
    with invocation.client(usual_priority(priority)) as client, StatusLine(sys.stderr) as status:
        embeddings = client.embed(name, wanted, normalize=normalize, progress=shown_on(status, model), **given(options))
    if invocation.json:
        invocation.print_json(
            {
                "vectors": embeddings.vectors.tolist(),
                "dimensions": dimensions(embeddings),
                "truncated": embeddings.truncated,
                "usage": embeddings.usage,
                "receipt": embeddings.receipt,
            }
        )
    else:
        invocation.print(text(wanted, embeddings))


def dimensions(embeddings: Embeddings) -> int:
    """Numbers of each vector."""
    return (embeddings.vectors.shape or (0, 0))[-1]


def text(texts: Sequence[str], embeddings: Embeddings) -> str:
    """One line a vector: its text, how long it is, and how it begins."""
    vectors: Any = embeddings.vectors.tolist()
    length = count(dimensions(embeddings))
    return table(
        ("text", "dimensions", "vector"),
        [
            (cut(line(said), TEXT_COLUMNS_MAX), length, beginning(vector))
            for said, vector in zip(texts, vectors, strict=False)
        ],
        right=("dimensions",),
    )


def beginning(vector: Sequence[float]) -> str:
    """`0.0213 -0.1034 0.5000 0.0100 …`."""
    shown = " ".join(f"{number:.4f}" for number in vector[:NUMBERS_SHOWN])
    return f"{shown} …" if len(vector) > NUMBERS_SHOWN else shown
