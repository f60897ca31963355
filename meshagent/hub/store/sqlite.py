"""The SQLite store: a writer and a reader, each a connection on a thread of its own, so that the event loop never waits
for a disk and who only asks never waits for who writes.

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
from meshagent.hub.store.trouble import StoreError, corrupt, explain
from meshagent.model.errors import MeshagentError
from meshagent.runtime.latest import Latest

T = TypeVar("T")

#: Another process (a shell, a copy) may hold the lock for a moment. Once it has held it longer than that, each further
#: transaction waits only shortly: they queue on one thread.
PATIENCE, IMPATIENCE = 5.0, 0.1


class SqliteStore:
    """See ``interface.Store``. Make it with ``open_store``."""

    def __init__(self, path: Path, writer: "_Lane", reader: "_Lane") -> None:
        self.path = path
        self.trouble: Latest[StoreError | None] = Latest(None)
        self._writer = writer
        self._reader = reader

    async def transact(self, work: Callable[[Transaction], T]) -> T:
        """Run ``work`` in one transaction on the writer's thread; committed to disk when this returns.

        A caller that is cancelled meanwhile doesn't undo it: ``work`` runs whole or not at all.
        """
        try:
            result: T = await self._writer.run(self._transact, work)
        except StoreError as error:
            known = self.trouble.value
            if known is None or known.code not in (error.code, "store-corrupt"):
                self.trouble.set(error)
            raise
        if self.trouble.value is not None and self.trouble.value.code != "store-corrupt":
            self.trouble.set(None)
        return result

    async def read(self, work: Callable[[Transaction], T]) -> T:
        """Run ``work``, which changes nothing, on one consistent state, beside whatever is being written."""
        try:
            return await self._reader.run(self._read, work)
        except StoreError as error:
            if error.code == "store-corrupt":
                self.trouble.set(error)
            raise

    def _transact(self, work: Callable[[Transaction], T]) -> T:
        connection = self._writer.connection
        _be_patient(connection, PATIENCE if self.trouble.value is None else IMPATIENCE)
        return self._explained(connection, "BEGIN IMMEDIATE", work)

    def _read(self, work: Callable[[Transaction], T]) -> T:
        return self._explained(self._reader.connection, "BEGIN DEFERRED", work)

    def _explained(self, connection: sqlite3.Connection, begin: str, work: Callable[[Transaction], T]) -> T:
        try:
            with _transaction(connection, begin):
                return work(SqliteTransaction(connection))
        except sqlite3.Error as error:
            raise explain(error, self.path) from error

    async def close(self) -> None:
        """Write the WAL back and let go of the file; harmless when called twice."""
        await self._reader.close()
        await self._writer.close()


class _Lane:
    """A connection and the one thread that uses it."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self.connection: sqlite3.Connection

    async def open(self, make: Callable[[], sqlite3.Connection]) -> None:
        try:
            self.connection = await self.run(make)
        except BaseException:
            self._thread.shutdown(wait=False)
            raise

    async def run(self, call: Callable[..., T], *given: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *given)

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self.connection.close)
        # waits for the thread just told to end: it is idle, so this takes no time
        self._thread.shutdown()


class _transaction:  # noqa: N801 - reads as a with-statement
    """``begin`` … COMMIT, ROLLBACK on any exception."""

    def __init__(self, connection: sqlite3.Connection, begin: str = "BEGIN IMMEDIATE") -> None:
        self._connection = connection
        self._begin = begin

    def __enter__(self) -> None:
        self._connection.execute(self._begin)

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

    Raises ``MeshagentError`` when the file can't be used, is damaged, or was written by a newer version.
    """
    writer, reader = _Lane("hub-store"), _Lane("hub-reader")
    await writer.open(lambda: _open(path))
    try:
        await reader.open(lambda: _open_reader(path))
    except BaseException:
        await writer.close()
        raise
    return SqliteStore(path, writer, reader)


def _open(path: Path) -> sqlite3.Connection:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # before SQLite makes it with the umask's mode; the WAL and shm files inherit the database's mode
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(path, isolation_level=None)
    except (OSError, sqlite3.Error) as error:
        raise explain(error, path) from error
    try:
        _prepare(connection)
        check(connection, path)
        _migrate(connection, path)
    except (OSError, sqlite3.Error) as error:
        connection.close()
        raise explain(error, path) from error
    except MeshagentError:
        connection.close()
        raise
    return connection


def _open_reader(path: Path) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(path, isolation_level=None)
        _be_patient(connection, PATIENCE)
        connection.execute("PRAGMA query_only=ON")
        connection.execute("PRAGMA trusted_schema=OFF")
    except sqlite3.Error as error:
        raise explain(error, path) from error
    return connection


def _prepare(connection: sqlite3.Connection) -> None:
    _be_patient(connection, PATIENCE)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA trusted_schema=OFF")


def _be_patient(connection: sqlite3.Connection, seconds: float) -> None:
    connection.execute(f"PRAGMA busy_timeout={int(seconds * 1000)}")


def check(connection: sqlite3.Connection, path: Path) -> None:
    """Raise ``StoreError`` (``store-corrupt``) where the file contradicts itself; 10 MB take 30 ms."""
    found = [str(row[0]) for row in connection.execute("PRAGMA quick_check(1)")]
    if found != ["ok"]:
        raise corrupt(path, " ".join(found)[:200])


def newest_format() -> int:
    """The newest format of a database that this version knows."""
    return migrations()[-1][0]


def refuse_newer(version: int, path: Path) -> None:
    """Raise ``MeshagentError`` (``store-too-new``) for a database of a later version of this program."""
    if version > newest_format():
        raise MeshagentError(
            "store-too-new",
            f"{path} has format {version}, this version knows up to {newest_format()}",
            hint="run the newer meshagent again, or give this one another --store",
        )


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    refuse_newer(version, path)
    for number, sql in migrations():
        if number > version:
            with _transaction(connection):
                for statement in filter(str.strip, sql.split(";\n")):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version={number}")
