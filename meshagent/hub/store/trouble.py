"""What can be wrong with the database, told apart by what a person has to do about it.

SQLite's result codes say what failed, rarely why: an I/O error may be a full disk, and "locked" does not name who
holds the lock. So the file system and the kernel's lock table are asked as well.
Source: sqlite.org/rescode.html.
"""

import os
import sqlite3
from pathlib import Path

from meshagent.machine.locks import writers
from meshagent.model.errors import MeshagentError

#: Less than this is full: a commit of one row needs a page of the WAL, a checkpoint some more.
_FULL_BYTES = 64 << 10


class StoreError(MeshagentError):
    """The database refused. ``code`` is one of the ``store-…`` conditions; nothing of the transaction was kept."""


def explain(error: Exception, path: Path) -> MeshagentError:
    """The error of SQLite or of the file system as what is wrong with the database at ``path``.

    A ``StoreError``, but for a row that contradicts others: then nothing is wrong with the database.
    """
    kind = _kind(error)
    if kind == "contradiction":
        return MeshagentError("store-refused", f"the hub's database refused a change: {error}")
    if kind in ("failed", "full") and (kind == "full" or _is_full(path)):
        return _full(path, error)
    if kind == "locked":
        return _locked(path)
    if kind == "corrupt":
        return corrupt(path, str(error))
    if kind == "not-writable":
        return StoreError(
            "store-not-writable",
            f"the hub's database {path} can't be written: {error}",
            hint=f"the hub's user must own {path.parent} and what is in it, on a file system mounted read-write",
        )
    return StoreError(
        "store-failed",
        f"the hub's database {path} refused: {error}",
        hint="look at the disk: dmesg, and the space and permissions of the hub's state directory",
    )


def corrupt(path: Path, detail: str) -> StoreError:
    """The file is not what was written."""
    return StoreError(
        "store-corrupt",
        f"the hub's database {path} is damaged: {detail}",
        hint="stop the hub and put the newest backup in its place: meshagent hub restore FILE --force",
    )


def _full(path: Path, error: Exception) -> StoreError:
    return StoreError(
        "store-full",
        f"the disk of the hub's database {path} is full ({error})",
        hint=f"free some space on it: df -h {path.parent}; hosts go on with what they have",
    )


def _locked(path: Path) -> StoreError:
    holders = writers([path, path.with_name(f"{path.name}-shm")])
    by = ", ".join(holders) or "another process"
    return StoreError(
        "store-locked",
        f"the hub's database {path} is locked by {by}",
        hint="end what holds it: a second hub, a shell of sqlite3, a copy that is being made; see fuser -v",
    )


def _kind(error: Exception) -> str:
    if isinstance(error, OSError):
        return "failed" if error.errno not in (1, 13, 21, 30) else "not-writable"  # EPERM EACCES EISDIR EROFS
    code = getattr(error, "sqlite_errorcode", None)
    if not isinstance(error, sqlite3.Error) or code is None:
        misused = isinstance(error, sqlite3.ProgrammingError)
        return "corrupt" if isinstance(error, sqlite3.DatabaseError) and not misused else "failed"
    return _BY_CODE.get(code & 0xFF, "failed")


_BY_CODE = {
    sqlite3.SQLITE_CONSTRAINT: "contradiction",
    sqlite3.SQLITE_FULL: "full",
    sqlite3.SQLITE_BUSY: "locked",
    sqlite3.SQLITE_LOCKED: "locked",
    sqlite3.SQLITE_CORRUPT: "corrupt",
    sqlite3.SQLITE_NOTADB: "corrupt",
    sqlite3.SQLITE_READONLY: "not-writable",
    sqlite3.SQLITE_PERM: "not-writable",
    sqlite3.SQLITE_CANTOPEN: "not-writable",
}


def _is_full(path: Path) -> bool:
    try:
        seen = os.statvfs(path.parent)
    except OSError:
        return False
    return seen.f_bavail * seen.f_frsize < _FULL_BYTES
