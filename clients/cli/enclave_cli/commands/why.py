"""`enclave why`: the daemon's own story of what happened and what it decided."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import tzinfo
from typing import TYPE_CHECKING, cast

import click

from enclave_cli.errors import CommandError, Problem
from enclave_cli.invocation import Invocation, json_option, no_start_option
from enclave_cli.output import clock_time, line, measures, table
from enclave_cli.references import reference

if TYPE_CHECKING:
    from enclave.protocol.bodies import WhyRecord
    from enclave_cli.daemon import Daemon

RECORD = "The record keeps the last few thousand events, and starts with the daemon."
NOT_ON_RECORD = "not_on_record"
"""The code of the error about what might be a request, a client, an instance or an event, and of which nothing is
known. A model that exists is another matter: nothing has happened to it yet."""

RECORDS_MAX = 10_000
"""The most that the protocol tells at once."""

_REQUEST = re.compile(r"[^/\s]+/[0-9]+")
"""A request as the daemon prints it: session/number."""

_EVENT = re.compile(r"#?[0-9]{1,18}")

_CLIENT_OR_INSTANCE = re.compile(r"[ci][0-9]{1,18}")
"""As the daemon numbers them; a client's requests begin with it."""

_ID_FIELDS = frozenset({"cause", "client", "instance", "request"})


@click.command("why")
@click.argument("about", required=False, metavar="[REQUEST|MODEL|INSTANCE|CLIENT|NUMBER]")
@click.option("--limit", type=click.IntRange(1, RECORDS_MAX), default=40, show_default=True, help="Events at most.")
@json_option("Print one JSON document: {records: […]}.")
@no_start_option(hidden=True)
@click.pass_obj
def command(invocation: Invocation, about: str | None, limit: int) -> None:
    """Tell why a request waited or a model was loaded or unloaded.

    Without an argument, what happened last; with a REQUEST (`session/number`, as the events name it), a MODEL, an
    INSTANCE (`i1`) or a CLIENT (`c1`), what concerns that; with the NUMBER of an event, that event, what led to it and
    what it led to. One line an event, the newest last; BECAUSE names the event that led to it. Of a request it says who
    asked. There are no prompts and no answers in it, only their lengths.

    \b
    Examples:
      enclave why
      enclave why tiny --limit 10
      enclave why c6/1
      enclave why i1
      enclave why 17
    """
    with invocation.client() as client:
        records = _records(client, about, limit)
    if invocation.json:
        invocation.print_json({"records": records})
    else:
        invocation.print(text(records, about, now=time.time()))


def _records(client: Daemon, about: str | None, limit: int) -> Sequence[WhyRecord]:
    """Raises CommandError for what is not on record."""
    if about is None:
        return client.why(None, model=None, limit=limit)
    if (number := event_number(about)) is not None:
        found = around(client.why(None, model=None, limit=RECORDS_MAX), number)
    elif is_request(about):
        found = client.why(about, model=None, limit=limit)
    elif is_client_or_instance(about):
        found = concerning(client.why(None, model=None, limit=RECORDS_MAX), about)
        if not found and any(about == model.name or about in model.aliases for model in client.models()):
            return client.why(None, model=about, limit=limit)
    else:
        return client.why(None, model=reference(about), limit=limit)
    if not found:
        raise CommandError(Problem(NOT_ON_RECORD, f"nothing is on record about {line(about)}", RECORD))
    return found[-limit:]


def is_request(about: str, exists: Callable[[str], bool] = os.path.exists) -> bool:
    """Whether it is a request's id and no model: a file of that name wins."""
    return _REQUEST.fullmatch(about) is not None and not exists(about)


def event_number(about: str, exists: Callable[[str], bool] = os.path.exists) -> int | None:
    """The number of an event, as `17` or `#17`; None for everything else. A file of that name wins."""
    return int(about.removeprefix("#")) if _EVENT.fullmatch(about) and not exists(about) else None


def is_client_or_instance(about: str, exists: Callable[[str], bool] = os.path.exists) -> bool:
    """Whether it is the id of one of these and no model: a file of that name wins."""
    return _CLIENT_OR_INSTANCE.fullmatch(about) is not None and not exists(about)


def concerning(records: Sequence[WhyRecord], about: str) -> list[WhyRecord]:
    """The records that name an instance or a client, or a request of that client."""
    return [record for record in records if _names(record.data or {}, about)]


def _names(data: Mapping[str, object], about: str) -> bool:
    return any(
        _names(cast("Mapping[str, object]", value), about)
        if isinstance(value, Mapping)
        else name in _ID_FIELDS and str(value).partition("/")[0] == about
        for name, value in data.items()
    )


def around(records: Sequence[WhyRecord], number: int) -> list[WhyRecord]:
    """The record of that number with the chain of those that led to it, and those that it led to itself, in the
    order of the records."""
    by_number = {record.number: record for record in records}
    wanted = set[int]()
    following: int | None = number
    while following in by_number and following not in wanted:
        wanted.add(following)
        following = by_number[following].cause
    return [record for record in records if record.number in wanted or record.cause == number]


def text(
    records: Sequence[WhyRecord], about: str | None = None, zone: tzinfo | None = None, now: float | None = None
) -> str:
    """One line a record; times are of `zone`, by default the local one, and with a date where that is not `now`'s."""
    if not records:
        return f"Nothing is on record{f' about {line(about)}' if about else ''}. {RECORD}"
    return table(
        ("time", "number", "because", "event", "what"),
        [
            (
                clock_time(record.at, zone, now),
                f"#{record.number}",
                because(record),
                record.kind,
                told(record),
            )
            for record in records
        ],
        right=("number", "because"),
    )


def because(record: WhyRecord) -> str:
    """The record that led to it, else the request or whatever else its data names as the cause."""
    if record.cause is not None:
        return f"#{record.cause}"
    cause = (record.data or {}).get("cause")
    return "" if cause is None else str(cause)


def told(record: WhyRecord) -> str:
    """The record's own words and who asked, then its data as `name=value`, without what stands in the other columns."""
    data = record.data or {}
    asker = data.get("asker")
    words = [record.text, f"asked by {asker}" if asker else ""]
    others = {name: value for name, value in data.items() if name not in ("kind", "cause", "asker")}
    return " ".join(word for word in (*words, *(f"{name}={value}" for name, value in measures(others))) if word)
