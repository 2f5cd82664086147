"""The catalog's SQLite database: one thread owns the connection, and whatever touches it is done there in order.

A process that is killed at any moment leaves the last whole transaction (write-ahead log); a machine that loses power
leaves some whole transaction, perhaps an older one. What is in the database can be found out again, so trouble with it
never stops the daemon: a damaged file is moved aside, and where nothing can be written the work goes on in memory.
`problem` then says so.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from sqlite3 import Connection
from typing import TypeVar

from enclaved.daemon.catalog.schema import NewerSchemaError, migrate
from enclaved.daemon.refusal import RefusalError

THREAD_NAME = "enclaved-wait-catalog"
"""As all threads that may hang on a disk: the daemon's end does not wait for them."""
BUSY_SECONDS = 5.0
"""What another program that reads the file may hold it up."""
MEMORY = ":memory:"

T = TypeVar("T")

logger = logging.getLogger("enclaved.catalog")


class Store:
    """The database at `path`, made when it is first used; without a path it lives in memory."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=THREAD_NAME)
        self._connection: Connection | None = None
        self._closed = False
        self.problem: str | None = None
        """Why what is learned now may be lost at the end; a sentence for a person."""

    async def read(self, work: Callable[[Connection], T]) -> T:
        """What `work` returns; it only looks. Raises what it raises, and RefusalError (`shutting_down`)."""
        if self._closed:
            raise RefusalError("shutting_down", "The daemon is about to end.")
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._tried, work)

    async def write(self, work: Callable[[Connection], T]) -> T:
        """What `work` returns; all that it changes is one transaction. Raises as `read` does."""
        return await self.read(lambda connection: _in_transaction(connection, work))

    async def close(self) -> None:
        """Closes the connection once what was asked for is done. A second time is harmless."""
        if self._closed:
            return
        self._closed = True
        closing = asyncio.wrap_future(self._thread.submit(self._close))
        self._thread.shutdown(wait=False)
        await closing

    def _tried(self, work: Callable[[Connection], T]) -> T:
        """In the thread: the work, once more if the trouble was the database's own and is out of the way."""
        try:
            return work(self._opened())
        except sqlite3.OperationalError as error:
            self._go_on_in_memory(f"the catalog cannot be kept in {self._path}: {error}")
        except sqlite3.DatabaseError as error:
            if type(error) is not sqlite3.DatabaseError:  # its kinds tell of other trouble
                raise
            self._move_aside(error)
        except (NewerSchemaError, OSError) as error:
            self._go_on_in_memory(f"the catalog in {self._path} cannot be used: {error}")
        return work(self._opened())

    def _opened(self) -> Connection:
        if self._connection is None:
            if self._path is not None:
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._connection = _connect(MEMORY if self._path is None else str(self._path))
        return self._connection

    def _move_aside(self, error: Exception) -> None:
        """The damaged file gets another name, for whoever wants to look at it; an earlier one goes."""
        if self._path is None:
            raise error
        self._close()
        aside = self._path.with_name(f"{self._path.name}.damaged")
        logger.error("the catalog was damaged (%s) and is made anew; the old one is now %s", error, aside)
        self.problem = f"the catalog was damaged ({error}) and was made anew; the old one is {aside}"
        with suppress(OSError):
            self._path.replace(aside)
        for end in ("-wal", "-shm"):
            with suppress(OSError):
                self._path.with_name(self._path.name + end).unlink()

    def _go_on_in_memory(self, problem: str) -> None:
        """What can still be read comes along."""
        if self._path is None:
            return
        logger.error("%s", problem)
        self.problem = f"{problem}; until that is mended, it is kept in memory only"
        self._path = None
        old, self._connection = self._connection, None
        if old is None:
            return
        memory = _connect(MEMORY)
        try:
            with suppress(sqlite3.Error):
                if old.in_transaction:
                    old.execute("ROLLBACK")
                old.backup(memory)
        finally:
            old.close()
        self._connection = memory

    def _close(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None


def _connect(path: str) -> Connection:
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "trusted_schema = OFF", "cell_size_check = ON"):
            connection.execute(f"PRAGMA {pragma}")
        migrate(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _in_transaction(connection: Connection, work: Callable[[Connection], T]) -> T:
    connection.execute("BEGIN IMMEDIATE")
    try:
        result = work(connection)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return result
