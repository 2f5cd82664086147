"""What the catalog's tables hold, as rows and back; each function runs in the store's thread."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from sqlite3 import Connection
from typing import NamedTuple

from enclaved.link.framing import LinkError
from enclaved.link.packing import pack, unpack
from enclaved.plugin.model import ModelEntry, ModelHeader, ModelName
from enclaved.plugin.plain import from_plain, to_plain


@dataclass(frozen=True)
class Listed:
    """A model as its source listed it."""

    entry: ModelEntry
    size_bytes: int
    """Of all its files."""
    identity: str | None
    """Which file the first one was; None where it has none, or could not be looked at."""


class Line(NamedTuple):
    """What a list shows of a model."""

    name: ModelName
    source: str
    path: str | None
    """Of the first file."""
    backends: tuple[str, ...]
    """The only ones that can run it; empty: all that recognise the file's name."""
    capabilities: tuple[str, ...]
    """As far as its header is known."""
    note: str
    size_bytes: int


@dataclass(frozen=True)
class Changes:
    """The names of the models that came, are different now, or went."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)


_COLUMNS = "entry, path, backends, capabilities, note, size_bytes, identity"


def replace_models(connection: Connection, source: str, found: Sequence[Listed], now: float) -> Changes:
    """From now on these are the models of a source."""
    had = {name for (name,) in connection.execute("SELECT name FROM models WHERE source = ?", (source,))}
    gone = had.difference(model.entry.name for model in found)
    return update_models(connection, source, found, sorted(gone), now)


def update_models(
    connection: Connection, source: str, found: Iterable[Listed], gone: Iterable[str], now: float
) -> Changes:
    """These models of a source are so now, those are gone; the others are as they were. A name that another source has
    stays the other's."""
    added: list[str] = []
    changed: list[str] = []
    removed: list[str] = []
    for name in gone:
        if connection.execute("DELETE FROM models WHERE name = ? AND source = ?", (name, source)).rowcount:
            connection.execute("DELETE FROM also WHERE model = ?", (name,))
            removed.append(name)
    for model in found:
        name, row = model.entry.name, _row(model)
        known = connection.execute(f"SELECT source, {_COLUMNS} FROM models WHERE name = ?", (name,)).fetchone()
        if known is None:
            marks = ", ".join("?" * (len(row) + 3))
            connection.execute(
                f"INSERT INTO models(name, source, {_COLUMNS}, added_at) VALUES ({marks})", (name, source, *row, now)
            )
            added.append(name)
        elif known[0] == source and known[1:] != row:
            marks = ", ".join("?" * len(row))
            connection.execute(f"UPDATE models SET ({_COLUMNS}) = ({marks}) WHERE name = ?", (*row, name))
            connection.execute("DELETE FROM also WHERE model = ?", (name,))
            changed.append(name)
        else:
            continue
        connection.executemany(
            "INSERT OR IGNORE INTO also(reference, model) VALUES (?, ?)",
            [(reference, name) for reference in model.entry.also],
        )
    return Changes(tuple(added), tuple(changed), tuple(removed))


def forget_sources_but(connection: Connection, sources: Sequence[str]) -> None:
    """Models of sources that are not installed any more go."""
    marks = ", ".join("?" * len(sources))
    connection.execute(f"DELETE FROM models WHERE source NOT IN ({marks})", tuple(sources))
    connection.execute("DELETE FROM also WHERE model NOT IN (SELECT name FROM models)")


_LINES = """
SELECT name, source, path, backends, coalesce(capabilities,
    (SELECT headers.capabilities FROM headers WHERE headers.identity = models.identity LIMIT 1), ''), note, size_bytes
FROM models
"""


def lines_of_models(connection: Connection, after: str, limit: int) -> tuple[list[Line], bool]:
    """The models by name, from the first one after `after`; and whether there are more."""
    rows = connection.execute(f"{_LINES} WHERE name > ? ORDER BY name LIMIT ?", (after, limit + 1)).fetchall()
    return [_line(*row) for row in rows[:limit]], len(rows) > limit


def entry_meant(connection: Connection, reference: str, sources: Sequence[str]) -> ModelEntry | None:
    """The model of one of these sources that a reference means: by its name, or by what else only it is called."""
    marks = ", ".join("?" * len(sources))
    row = connection.execute(
        f"SELECT entry FROM models WHERE name = ? AND source IN ({marks})", (reference, *sources)
    ).fetchone()
    if row is None:
        called_so = f"SELECT entry FROM also JOIN models ON name = model WHERE reference = ? AND source IN ({marks})"
        rows = connection.execute(f"{called_so} LIMIT 2", (reference, *sources)).fetchall()
        row = rows[0] if len(rows) == 1 else None
    return None if row is None else _entry(row[0])


def lines_named(connection: Connection, names: Sequence[str]) -> list[Line]:
    """Those of the models that are there."""
    rows = (connection.execute(f"{_LINES} WHERE name = ?", (name,)).fetchone() for name in names)
    return [_line(*row) for row in rows if row is not None]


def names_of_models(connection: Connection) -> list[str]:
    """The names of all models."""
    return [name for (name,) in connection.execute("SELECT name FROM models ORDER BY name")]


def count_models(connection: Connection) -> int:
    """How many models there are."""
    (count,) = connection.execute("SELECT count(*) FROM models").fetchone()
    return count


def count_models_below(connection: Connection, source: str, folder: str) -> int:
    """How many models of a source lie in a folder, or in one below it."""
    beginning = folder.rstrip("/") + "/"
    (count,) = connection.execute(
        "SELECT count(*) FROM models WHERE source = ? AND substr(path, 1, ?) = ?", (source, len(beginning), beginning)
    ).fetchone()
    return count


def header_of(connection: Connection, identity: str, reader: str, version: str) -> ModelHeader | None:
    """What a reader of this version found in a file; None where it is not known, or no longer understood."""
    row = connection.execute(
        "SELECT header FROM headers WHERE identity = ? AND reader = ? AND version = ?", (identity, reader, version)
    ).fetchone()
    return None if row is None else _header(row[0])


def has_header(connection: Connection, identity: str, version: str) -> bool:
    """Whether some reader of this version has found a header in a file."""
    found = connection.execute("SELECT 1 FROM headers WHERE identity = ? AND version = ?", (identity, version))
    return found.fetchone() is not None


def keep_header(
    connection: Connection, identity: str, reader: str, version: str, header: ModelHeader, now: float
) -> None:
    """Remembers what a reader found in a file."""
    connection.execute(
        "INSERT OR REPLACE INTO headers(identity, reader, version, capabilities, read_at, header) "
        "VALUES (?, ?, ?, ?, ?, ?)",
        (identity, reader, version, " ".join(header.capabilities), now, pack(to_plain(header))),
    )


def forget_headers(connection: Connection, before: float) -> None:
    """Headers that were read before then go, but for those of listed models."""
    connection.execute(
        "DELETE FROM headers WHERE read_at < ? AND identity NOT IN "
        "(SELECT identity FROM models WHERE identity IS NOT NULL)",
        (before,),
    )


def _entry(text: str) -> ModelEntry | None:
    """None for what another version wrote and this one does not understand."""
    try:
        return from_plain(ModelEntry, json.loads(text))
    except ValueError:
        return None


def _row(model: Listed) -> tuple[str, str | None, str, str | None, str, int, str | None]:
    """What `_COLUMNS` names."""
    entry = model.entry
    return (
        json.dumps(to_plain(entry), sort_keys=True),
        entry.files[0].path if entry.files else None,
        " ".join(entry.backends),
        None if entry.header is None else " ".join(entry.header.capabilities),
        entry.note or "",
        model.size_bytes,
        model.identity,
    )


def _line(
    name: ModelName, source: str, path: str | None, backends: str, capabilities: str, note: str, size_bytes: int
) -> Line:
    return Line(name, source, path, tuple(backends.split()), tuple(capabilities.split()), note, size_bytes)


def _header(packed: bytes) -> ModelHeader | None:
    try:
        return from_plain(ModelHeader, unpack(packed))
    except (LinkError, ValueError, TypeError):
        return None
