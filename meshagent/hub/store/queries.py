"""Rows to SQL and back: the ``Transaction`` of the SQLite store. Nothing here begins, commits or knows of threads."""

import json
import sqlite3
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from meshagent.hub.store.rows import (
    ANNOUNCED,
    AuditRow,
    CertificateRow,
    HostRow,
    HostStatus,
    ResourceRow,
    RootRow,
    ServiceRow,
    TokenRow,
    TokenUseRow,
)

R = TypeVar("R", RootRow, TokenRow, TokenUseRow, HostRow, CertificateRow, ServiceRow, ResourceRow, AuditRow)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TABLES: dict[type, str] = {
    RootRow: "roots",
    TokenRow: "tokens",
    TokenUseRow: "token_uses",
    HostRow: "hosts",
    CertificateRow: "certificates",
    ServiceRow: "services",
    ResourceRow: "resources",
    AuditRow: "audit",
}
#: Field names that SQL keeps for itself.
_COLUMNS = {"replace": "replace_host", "index": "virtual_index"}
_TIMES = {"created", "expires", "revoked", "last_seen", "not_after", "last_used", "changed", "at"}
_FLAGS = {"active", "replace"}
_LISTS = {"services", "addresses", "cidrs"}

#: The audit keeps this many rows: a year of one attempt every ten minutes.
AUDIT_ROWS = 50_000


def micros(at: datetime) -> int:
    """Microseconds since 1970 UTC, exact."""
    return (at - _EPOCH) // timedelta(microseconds=1)


def _to_sql(name: str, value: Any) -> Any:
    if value is None:
        return None
    if name in _TIMES:
        return micros(value)
    if name in _LISTS:
        return json.dumps(list(value))
    return int(value) if name in _FLAGS else value


def _from_sql(name: str, value: Any) -> Any:
    if value is None:
        return None
    if name in _TIMES:
        return _EPOCH + timedelta(microseconds=value)
    if name in _LISTS:
        return tuple(json.loads(value))
    if name == "status":
        return HostStatus(value)
    return bool(value) if name in _FLAGS else value


class SqliteTransaction:
    """See ``interface.Transaction``. Table and column names come from this module only, values are always bound."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._sql = connection

    # the two shapes every table shares

    def _select(self, kind: type[R], where: str = "", *values: Any) -> tuple[R, ...]:
        names = [f.name for f in fields(kind)]
        columns = ", ".join(_COLUMNS.get(n, n) for n in names)
        rows = self._sql.execute(f"SELECT {columns} FROM {_TABLES[kind]} {where}", values)  # noqa: S608 - own names
        try:
            return tuple(kind(**{n: _from_sql(n, v) for n, v in zip(names, row, strict=True)}) for row in rows)
        except (ValueError, TypeError, OverflowError) as error:  # bytes that this program did not write
            raise sqlite3.DatabaseError(f"a row of {_TABLES[kind]} can't be read: {error}") from error

    def _one(self, kind: type[R], where: str, *values: Any) -> R | None:
        return next(iter(self._select(kind, where, *values)), None)

    def _put(self, row: Any, *, without: str = "", conflict: str = "REPLACE") -> sqlite3.Cursor:
        names = [f.name for f in fields(row) if f.name != without]
        columns = ", ".join(_COLUMNS.get(n, n) for n in names)
        marks = ", ".join("?" * len(names))
        statement = f"INSERT OR {conflict} INTO {_TABLES[type(row)]} ({columns}) VALUES ({marks})"  # noqa: S608 - own names
        return self._sql.execute(statement, [_to_sql(n, getattr(row, n)) for n in names])

    # meta, roots

    def meta(self, key: str) -> str | None:
        row = self._sql.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def put_meta(self, key: str, value: str) -> None:
        self._sql.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", (key, value))

    def drop_meta(self, key: str) -> None:
        self._sql.execute("DELETE FROM meta WHERE key = ?", (key,))

    def roots(self) -> tuple[RootRow, ...]:
        return self._select(RootRow, "ORDER BY created, fingerprint")

    def put_root(self, row: RootRow) -> None:
        self._put(row)

    # tokens

    def token(self, token_id: str) -> TokenRow | None:
        return self._one(TokenRow, "WHERE id = ?", token_id)

    def tokens(self) -> tuple[TokenRow, ...]:
        return self._select(TokenRow, "ORDER BY created, id")

    def put_token(self, row: TokenRow) -> None:
        self._put(row)

    def token_uses(self, token_id: str) -> tuple[TokenUseRow, ...]:
        return self._select(TokenUseRow, "WHERE token_id = ? ORDER BY at, host_key_sha256", token_id)

    def put_token_use(self, row: TokenUseRow) -> None:
        self._put(row)

    # hosts and their certificates

    def host(self, name: str) -> HostRow | None:
        return self._one(HostRow, "WHERE name = ? AND status = 'active'", name)

    def host_by_id(self, host_id: int) -> HostRow | None:
        return self._one(HostRow, "WHERE id = ?", host_id)

    def hosts(self, status: HostStatus = HostStatus.ACTIVE) -> tuple[HostRow, ...]:
        return self._select(HostRow, "WHERE status = ? ORDER BY name, id", status)

    def hosts_by_key(self, prefix: str) -> tuple[HostRow, ...]:
        where = "WHERE substr(host_key_sha256, 1, ?) = ? AND status = 'active' ORDER BY id"
        return self._select(HostRow, where, len(prefix), prefix)

    def add_host(self, row: HostRow) -> HostRow:
        # ABORT, not REPLACE: a second active row of one name must fail, not silently push out the first
        cursor = self._put(row, without="id", conflict="ABORT")
        added = self.host_by_id(cursor.lastrowid or 0)
        assert added is not None
        return added

    def put_host(self, row: HostRow) -> None:
        self._put(row)

    def put_announcement(self, row: HostRow) -> None:
        columns = ", ".join(f"{name} = ?" for name in ANNOUNCED)
        values = [_to_sql(name, getattr(row, name)) for name in ANNOUNCED]
        statement = f"UPDATE hosts SET {columns} WHERE id = ? AND status = 'active'"  # noqa: S608 - own names
        self._sql.execute(statement, [*values, row.id])

    def touch_hosts(self, host_ids: tuple[int, ...], at: datetime) -> None:
        self._sql.executemany("UPDATE hosts SET last_seen = ? WHERE id = ?", [(micros(at), i) for i in host_ids])

    def certificate(self, serial: str) -> CertificateRow | None:
        return self._one(CertificateRow, "WHERE serial = ?", serial)

    def put_certificate(self, row: CertificateRow) -> None:
        self._put(row, conflict="ABORT")

    def drop_certificates(self, expired_before: datetime) -> int:
        return self._sql.execute("DELETE FROM certificates WHERE not_after < ?", (micros(expired_before),)).rowcount

    # services

    def service(self, host: str) -> ServiceRow | None:
        return self._one(ServiceRow, "WHERE host = ?", host)

    def services(self) -> tuple[ServiceRow, ...]:
        return self._select(ServiceRow, "ORDER BY host")

    def put_service(self, row: ServiceRow) -> None:
        self._put(row)

    def drop_service(self, host: str) -> None:
        self._sql.execute("DELETE FROM services WHERE host = ?", (host,))

    # resources

    def resource(self, kind: str, namespace: str, name: str) -> ResourceRow | None:
        return self._one(ResourceRow, "WHERE kind = ? AND namespace = ? AND name = ?", kind, namespace, name)

    def resources(self) -> tuple[ResourceRow, ...]:
        return self._select(ResourceRow, "ORDER BY created, kind, namespace, name")

    def put_resource(self, row: ResourceRow) -> None:
        self._put(row)

    def drop_resource(self, kind: str, namespace: str, name: str) -> bool:
        statement = "DELETE FROM resources WHERE kind = ? AND namespace = ? AND name = ?"
        return self._sql.execute(statement, (kind, namespace, name)).rowcount > 0

    # audit

    def add_audit(self, row: AuditRow) -> None:
        cursor = self._put(row, conflict="ABORT")
        self._sql.execute("DELETE FROM audit WHERE id <= ?", ((cursor.lastrowid or 0) - AUDIT_ROWS,))

    def audit(self, limit: int) -> tuple[AuditRow, ...]:
        return self._select(AuditRow, "ORDER BY id DESC LIMIT ?", limit)
