"""The tables of the catalog, and how older ones become today's.

The database's `user_version` counts the steps that were taken. A step that was released is never changed.
"""

from __future__ import annotations

from sqlite3 import Connection

STEPS: tuple[str, ...] = (
    """
    -- The models as the sources listed them last.
    CREATE TABLE models(
        name TEXT PRIMARY KEY,
        source TEXT NOT NULL,
        entry TEXT NOT NULL,        -- JSON of the ModelEntry; what a list shows of it follows
        path TEXT,                  -- of the first file; NULL where there is none
        backends TEXT NOT NULL,     -- the only ones that can run it, with spaces between; empty: by the file's name
        capabilities TEXT,          -- with spaces between; NULL where the file's header has to tell
        note TEXT NOT NULL,
        size_bytes INTEGER NOT NULL,
        identity TEXT,              -- which file the first one is; NULL where there is none
        added_at REAL NOT NULL      -- seconds since 1970
    ) WITHOUT ROWID;
    CREATE INDEX models_by_source ON models(source, name);
    -- What else means a model, as long as it means no other one.
    CREATE TABLE also(
        reference TEXT NOT NULL,
        model TEXT NOT NULL,
        PRIMARY KEY (reference, model)
    ) WITHOUT ROWID;
    CREATE INDEX also_by_model ON also(model);
    -- What the header readers found in a file, so that no file is read twice.
    CREATE TABLE headers(
        identity TEXT NOT NULL,
        reader TEXT NOT NULL,
        version TEXT NOT NULL,      -- of the program that read it
        capabilities TEXT NOT NULL, -- as in `models`
        read_at REAL NOT NULL,      -- seconds since 1970
        header BLOB NOT NULL,       -- MessagePack of the ModelHeader
        PRIMARY KEY (identity, reader)
    ) WITHOUT ROWID;
    """,
)


class NewerSchemaError(Exception):
    """The database was made by a later version of this program."""


def migrate(connection: Connection) -> None:
    """Brings the tables up to date, all steps in one transaction. Raises NewerSchemaError, sqlite3.Error."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(STEPS):
        raise NewerSchemaError(f"it has version {version}; this enclaved knows {len(STEPS)}")
    if version == len(STEPS):
        return
    script = "".join(STEPS[version:])
    connection.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {len(STEPS)}; COMMIT;")
