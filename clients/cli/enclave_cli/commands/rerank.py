"""`enclave rerank`: order documents by how well they answer a query."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from enclave_cli.errors import usage
from enclave_cli.inputs import piped_lines
from enclave_cli.invocation import COUNT_MAX, Invocation, Priority, json_option, no_start_option
from enclave_cli.options import given, request_options, usual_priority
from enclave_cli.output import line, plain_map, table
from enclave_cli.progress import shown_on
from enclave_cli.references import reference
from enclave_cli.status_line import StatusLine

if TYPE_CHECKING:
    from enclave.results import Ranking


@click.command("rerank")
@click.argument("model")
@click.argument("query")
@click.argument("documents", nargs=-1, metavar="[DOCUMENT]...")
@click.option("--top", type=click.IntRange(1, COUNT_MAX), metavar="N", help="Only so many of the best.")
@click.option(
    "--truncate-to",
    type=click.IntRange(1, COUNT_MAX),
    metavar="N",
    help="Cut longer texts to N tokens; else an error.",
)
@request_options
@json_option("Print one JSON document: {ranking: [{index, score, document}, …], truncated, usage, receipt}.")
@no_start_option(hidden=True)
@click.pass_obj
def command(
    invocation: Invocation,
    model: str,
    query: str,
    documents: tuple[str, ...],
    top: int | None,
    priority: Priority | None,
    **options: Any,
) -> None:
    """Order documents by how well they answer a query.

    The best comes first; a score is higher where a document answers better, and compares within one ranking only.
    Without a DOCUMENT, the documents come from a pipe, one a line.

    \b
    Examples:
      enclave rerank folder:ranker "Who wrote Faust?" "Goethe did." "It rains."
      enclave rerank folder:ranker "Who wrote Faust?" --top 3 < documents.txt
      enclave rerank folder:ranker "Who wrote Faust?" --json < documents.txt | jq -r '.ranking[0].document'
    """
    name = reference(model)
    among = list(documents) or piped_lines(invocation.note, "documents, one a line,")
    if not among:
        raise usage("there is no document", "give documents after the QUERY, or pipe them in, one a line")
    with invocation.client(usual_priority(priority)) as client, StatusLine(sys.stderr) as status:
        ranking = client.rerank(name, query, among, top=top, progress=shown_on(status, model), **given(options))
    if invocation.json:
        invocation.print_json(document(among, ranking))
    else:
        invocation.print(text(among, ranking))


def document(documents: Sequence[str], ranking: Ranking) -> dict[str, object]:
    """The ranking for a program, each with its document beside its number."""
    return {
        "ranking": [{**plain_map(ranked), "document": _said(documents, ranked.index)} for ranked in ranking.ranking],
        "truncated": ranking.truncated,
        "usage": ranking.usage,
        "receipt": ranking.receipt,
    }


def text(documents: Sequence[str], ranking: Ranking) -> str:
    """One line a document, the best first."""
    return table(
        ("rank", "score", "document"),
        [
            (str(rank), f"{ranked.score:.4f}", line(_said(documents, ranked.index) or ""))
            for rank, ranked in enumerate(ranking.ranking, start=1)
        ],
        right=("rank", "score"),
    )


def _said(documents: Sequence[str], index: int) -> str | None:
    # The number came from a backend, which may be wrong.
    return documents[index] if index < len(documents) else None
