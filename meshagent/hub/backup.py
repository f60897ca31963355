"""``hub backup`` and ``hub restore``: the whole hub in one file, taken while it runs, laid down where none runs.

The database is copied by SQLite's own backup (one consistent state, writers go on; sqlite.org/backup.html), then the
keys of its roots. A restore is prepared beside the state directory's files and moved in place last: killed at any
moment it leaves the old hub, the new one, or a hub that refuses to start (``store-lost``), never a new CA.
"""

import os
import pwd
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from meshagent import __version__
from meshagent.hub.archive import DATABASE, Manifest, damaged, digest_of, is_archive, unpack, write_archive
from meshagent.hub.authority.roots import key_name, load_roots, note_made
from meshagent.hub.store.queries import SqliteTransaction, micros
from meshagent.hub.store.rows import RootRow
from meshagent.hub.store.sqlite import check, refuse_newer
from meshagent.hub.store.trouble import explain
from meshagent.machine.files import make_dir, sync_dir
from meshagent.model.errors import MeshagentError, RefusedError
from meshagent.model.paths import Paths
from meshagent.transport.unix import refuse_if_live

#: Who the hub runs as where a package made the user.
HUB_USER = "meshagent-hub"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a hub's state is; ``database`` None = below ``paths``."""

    paths: Paths
    database: Path | None = None

    @property
    def store(self) -> Path:
        return self.database or self.paths.hub_state / DATABASE

    @property
    def ca_directory(self) -> Path:
        return self.paths.hub_state / "ca"


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did. ``set_aside``: where the hub that was there went; None when there was none."""

    manifest: Manifest
    tokens_revoked: int
    set_aside: Path | None


def back_up(place: Place, target: Path) -> Manifest:
    """Write the hub to ``target``, running or not. Raises ``MeshagentError``."""
    database, ca_directory = place.store, place.ca_directory
    if not database.exists():
        raise MeshagentError("no-hub", f"there is no hub here: {database} is missing", hint="name its root: --root DIR")
    if target.exists() and target.stat().st_size and not is_archive(target):
        raise MeshagentError("not-a-backup", f"{target} is something else than a backup", hint="choose another name")
    with _beside(target.parent) as work:
        copy = work / DATABASE
        _copy(database, copy)
        with closing(sqlite3.connect(copy)) as connection:
            roots, domain, hosts = _facts(connection, copy)
        if not roots:
            raise MeshagentError("store-lost", f"{database} holds no CA", hint="there is nothing to back up here")
        keys = [key_name(row.fingerprint) for row in roots]
        members = {DATABASE: copy, **{f"ca/{key}": ca_directory / key for key in keys}}
        manifest = Manifest(
            made_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            version=__version__,
            trust_domain=domain,
            ca_hash=load_roots(ca_directory, roots).ca_hash,  # a backup whose key doesn't fit is none
            hosts=hosts,
            sha256={name: digest_of(source) for name, source in members.items()},
        )
        write_archive(target, manifest, members)
    return manifest


def _copy(database: Path, copy: Path) -> None:
    os.close(os.open(copy, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(copy)) as target:
            source.execute("PRAGMA busy_timeout=5000")
            source.backup(target)
            target.execute("PRAGMA journal_mode=DELETE")  # one file: no log of changes beside it
            check(target, database)
    except sqlite3.Error as error:
        raise explain(error, database) from error


def _facts(connection: sqlite3.Connection, path: Path) -> tuple[tuple[RootRow, ...], str, int]:
    try:
        refuse_newer(int(connection.execute("PRAGMA user_version").fetchone()[0]), path)
        tx = SqliteTransaction(connection)
        return tx.roots(), tx.meta("trust_domain") or "", len(tx.hosts())
    except sqlite3.Error as error:
        raise explain(error, path) from error


def restore(archive: Path, place: Place, *, force: bool) -> Restored:
    """Put the hub of ``archive`` in place. Tokens that could still be used are revoked: the backup can't know whether
    they were used since. Raises ``MeshagentError``; then what was there is still there.
    """
    refuse_if_live(place.paths.hub_socket)
    state = place.paths.hub_state
    if not force and (place.store.exists() or any(place.ca_directory.glob("*.key"))):
        raise RefusedError("hub-exists", f"there is a hub in {state} already", hint="--force puts it aside, whole")
    make_dir(state, mode=0o700)
    owner = _owner(state)
    with _beside(state) as work:
        manifest = unpack(archive, work)
        revoked = _prepare(archive, work)
        _give(work, owner)
        aside = _set_aside(place)
        (work / "ca").rename(place.ca_directory)  # with its note: a database that doesn't follow will be missed
        make_dir(place.store.parent, mode=0o700)
        shutil.move(work / DATABASE, place.store)
        sync_dir(place.store.parent)
        sync_dir(state)
    return Restored(manifest, revoked, aside)


def _prepare(archive: Path, work: Path) -> int:
    """Judge what was unpacked; returns how many tokens were revoked."""
    now = micros(datetime.now(UTC))
    try:
        with closing(sqlite3.connect(work / DATABASE)) as connection:
            check(connection, work / DATABASE)
            roots, domain, _ = _facts(connection, archive)
            if not roots:
                raise damaged(archive, "its database holds no CA")
            load_roots(work / "ca", roots)
            note_made(work / "ca", domain, roots)
            revoked = connection.execute(_REVOKE_USABLE, (now, now)).rowcount
            connection.commit()
    except sqlite3.Error as error:
        raise damaged(archive, error) from error
    return revoked


_REVOKE_USABLE = """
UPDATE tokens SET revoked = ? WHERE revoked IS NULL AND expires > ?
AND uses > (SELECT count(*) FROM token_uses WHERE token_id = tokens.id)
"""


def _set_aside(place: Place) -> Path | None:
    """Move what is there into a directory of its own; None when nothing is."""
    store = place.store
    present = [*store.parent.glob(f"{store.name}*"), *filter(Path.exists, [place.ca_directory])]
    if not present:
        return None
    aside = place.paths.hub_state / f"before-restore-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    make_dir(aside, mode=0o700)
    for each in present:
        shutil.move(each, aside / each.name)
    return aside


def _owner(state: Path) -> tuple[int, int]:
    """Whose the state is: as the directory says, or the hub's own user where root restores on a fresh machine."""
    seen = state.stat()
    if seen.st_uid == 0 and os.geteuid() == 0:
        try:
            entry = pwd.getpwnam(HUB_USER)
        except KeyError:
            return seen.st_uid, seen.st_gid
        os.chown(state, entry.pw_uid, entry.pw_gid)
        return entry.pw_uid, entry.pw_gid
    return seen.st_uid, seen.st_gid


def _give(work: Path, owner: tuple[int, int]) -> None:
    (work / "ca").chmod(0o700)
    for path in [*work.rglob("*")]:
        os.chown(path, *owner)


@contextmanager
def _beside(directory: Path) -> Iterator[Path]:
    """A private directory on the same file system, gone afterwards."""
    try:
        work = Path(tempfile.mkdtemp(prefix=".hub-", dir=directory))
    except OSError as error:
        where = f"could not write in {directory}: {error.strerror}"
        raise MeshagentError("file-failed", where, hint="is it there, and may you write in it?") from error
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
