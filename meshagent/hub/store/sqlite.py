"""The SQLite store: one connection on one thread of its own, so that the event loop never waits for a disk.

WAL with ``synchronous=FULL``: a commit is on disk before ``transact`` returns (sqlite.org/wal.html section 2.3; NORMAL
could lose the last commits in a power cut). One thread makes SQLite's "one writer" rule ours, without busy loops.
"""

import asyncio
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from meshagent.hub.store.interface import Transaction
from meshagent.hub.store.migrations import migrations
from meshagent.hub.store.queries import SqliteTransaction
from meshagent.model.errors import MeshagentError

T = TypeVar("T")


class SqliteStore:
    """See ``interface.Store``. Make it with ``open_store``."""

    def __init__(self, connection: sqlite3.Connection, thread: ThreadPoolExecutor) -> None:
        self._connection = connection
        self._thread = thread

    async def transact(self, work: Callable[[Transaction], T]) -> T:
        """Run ``work`` in one transaction on the store's thread; committed to disk when this returns.

        A caller that is cancelled meanwhile doesn't undo it: ``work`` runs whole or not at all.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._transact, work)

    def _transact(self, work: Callable[[Transaction], T]) -> T:
        try:
            with _transaction(self._connection):
                return work(SqliteTransaction(self._connection))
        except sqlite3.Error as error:
            raise _store_error(error) from error

    async def close(self) -> None:
        """Write the WAL back and let go of the file; harmless when called twice."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self._connection.close)
        # waits for the thread just told to end: it is idle, so this takes no time
        self._thread.shutdown()


class _transaction:  # noqa: N801 - reads as a with-statement
    """BEGIN IMMEDIATE … COMMIT, ROLLBACK on any exception."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            try:
                self._connection.execute("COMMIT")
            except sqlite3.Error:
                self._roll_back()
                raise
        else:
            self._roll_back()

    def _roll_back(self) -> None:
        if self._connection.in_transaction:  # a full disk may have rolled it back already
            self._connection.execute("ROLLBACK")


async def open_store(path: Path) -> SqliteStore:
    """Open or make the database at ``path`` (0600, its directory 0700) and bring it to the newest schema.

    Raises ``MeshagentError`` when the file can't be used or was written by a newer version.
    """
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hub-store")
    try:
        connection = await asyncio.get_running_loop().run_in_executor(thread, _open, path)
    except BaseException:
        thread.shutdown(wait=False)
        raise
    return SqliteStore(connection, thread)


def _open(path: Path) -> sqlite3.Connection:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # before SQLite makes it with the umask's mode; the WAL and shm files inherit the database's mode
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(path, isolation_level=None)
    except (OSError, sqlite3.Error) as error:
        raise _store_error(error, path) from error
    try:
        _prepare(connection)
        _migrate(connection, path)
    except (OSError, sqlite3.Error) as error:
        connection.close()
        raise _store_error(error, path) from error
    except MeshagentError:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    # another process (sqlite3 shell, a backup) may hold the lock for a moment
    connection.execute("PRAGMA busy_timeout=5000")
    connection.execute("PRAGMA trusted_schema=OFF")


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    known = migrations()
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > known[-1][0]:
        raise MeshagentError(
            "store-too-new",
            f"{path} has format {version}, this version knows up to {known[-1][0]}",
            hint="run the newer meshagent again, or give this one another --store",
        )
    for number, sql in known:
        if number > version:
            with _transaction(connection):
                for statement in filter(str.strip, sql.split(";\n")):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version={number}")


def _store_error(error: Exception, path: Path | None = None) -> MeshagentError:
    where = f" {path}" if path else ""
    hint = "look at the free space and the permissions of the hub's state directory"
    if isinstance(error, sqlite3.DatabaseError) and not isinstance(
        error, sqlite3.OperationalError | sqlite3.IntegrityError
    ):
        hint = "the file is damaged: put it aside and restore a backup"
    return MeshagentError("store-failed", f"the hub's database{where} refused: {error}", hint=hint)
