"""What the catalog's tables hold, as rows and back; each function runs in the store's thread."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from sqlite3 import Connection
from typing import Any, NamedTuple

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


def replace_models(connection: Connection, source: str, found: Iterable[Listed], now: float) -> Changes:
    """From now on these are the models of a source. A name that another source has too stays the other's."""
    rows = {model.entry.name: _row(model) for model in found}
    kept: dict[str, tuple[Any, ...]] = {}
    taken: set[str] = set()
    for name, owner, *known in connection.execute(f"SELECT name, source, {_COLUMNS} FROM models"):
        if owner == source:
            kept[name] = tuple(known)
        else:
            taken.add(name)
    added = [name for name in rows if name not in kept and name not in taken]
    changed = [name for name, row in rows.items() if name in kept and kept[name] != row]
    removed = [name for name in kept if name not in rows]
    connection.executemany("DELETE FROM models WHERE name = ?", [(name,) for name in removed])
    connection.executemany(
        f"INSERT INTO models(name, source, {_COLUMNS}, added_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [(name, source, *rows[name], now) for name in added],
    )
    connection.executemany(
        f"UPDATE models SET ({_COLUMNS}) = (?, ?, ?, ?, ?, ?, ?) WHERE name = ?",
        [(*rows[name], name) for name in changed],
    )
    return Changes(tuple(added), tuple(changed), tuple(removed))


def forget_sources_but(connection: Connection, sources: Sequence[str]) -> None:
    """Models of sources that are not installed any more go."""
    marks = ", ".join("?" * len(sources))
    connection.execute(f"DELETE FROM models WHERE source NOT IN ({marks})", tuple(sources))


_LINES = """
SELECT name, source, path, backends, coalesce(capabilities,
    (SELECT headers.capabilities FROM headers WHERE headers.identity = models.identity LIMIT 1), ''), note, size_bytes
FROM models
"""


def lines_of_models(connection: Connection, after: str, limit: int) -> tuple[list[Line], bool]:
    """The models by name, from the first one after `after`; and whether there are more."""
    rows = connection.execute(f"{_LINES} WHERE name > ? ORDER BY name LIMIT ?", (after, limit + 1)).fetchall()
    return [_line(*row) for row in rows[:limit]], len(rows) > limit


def lines_named(connection: Connection, names: Sequence[str]) -> list[Line]:
    """Those of the models that are there."""
    rows = (connection.execute(f"{_LINES} WHERE name = ?", (name,)).fetchone() for name in names)
    return [_line(*row) for row in rows if row is not None]


def entry_named(connection: Connection, name: str) -> ModelEntry | None:
    """The entry as its source listed it; None where there is none, or one that is no longer understood."""
    row = connection.execute("SELECT entry FROM models WHERE name = ?", (name,)).fetchone()
    try:
        return None if row is None else from_plain(ModelEntry, json.loads(row[0]))
    except ValueError:
        return None


def names_of_models(connection: Connection) -> list[str]:
    """The names of all models."""
    return [name for (name,) in connection.execute("SELECT name FROM models ORDER BY name")]


def count_models(connection: Connection) -> int:
    """How many models there are."""
    (count,) = connection.execute("SELECT count(*) FROM models").fetchone()
    return count


def header_of(connection: Connection, reader: str, identity: str) -> ModelHeader | None:
    """What a reader found in a file; None where it is not known, or no longer understood."""
    row = connection.execute(
        "SELECT header FROM headers WHERE identity = ? AND reader = ?", (identity, reader)
    ).fetchone()
    return None if row is None else _header(row[0])


def keep_header(connection: Connection, reader: str, identity: str, header: ModelHeader, now: float) -> None:
    """Remembers what a reader found in a file."""
    connection.execute(
        "INSERT OR REPLACE INTO headers(identity, reader, capabilities, read_at, header) VALUES (?, ?, ?, ?, ?)",
        (identity, reader, " ".join(header.capabilities), now, pack(to_plain(header))),
    )


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
