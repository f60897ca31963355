"""What was acknowledged survives; what failed left nothing; two writers are first and second."""

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from meshagent.hub.store.interface import Transaction
from meshagent.hub.store.rows import AuditRow, HostRow, HostStatus, ServiceRow, TokenRow, TokenUseRow
from meshagent.hub.store.sqlite import open_store
from meshagent.model.errors import MeshagentError

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def token(token_id: str = "t1") -> TokenRow:
    return TokenRow(
        token_id, "00" * 32, "default", "web", NOW, NOW + timedelta(hours=1), services=("web",), replace=True
    )


def host(name: str = "web-1") -> HostRow:
    return HostRow(0, name, "default", "web", "PEM", "ab", NOW, NOW, addresses=("10.0.0.1", "2001:db8::1"))


def test_every_kind_of_row_reads_back_as_it_was_written_after_a_reopen(tmp_path: Path) -> None:
    async def story() -> None:
        path = tmp_path / "state/hub.db"
        store = await open_store(path)

        def write(tx: Transaction) -> HostRow:
            tx.put_token(token())
            tx.put_token_use(TokenUseRow("t1", "ab", "web-1", NOW))
            tx.put_service(ServiceRow("web.default.mesh.internal", 7, "default", "web", NOW))
            tx.add_audit(AuditRow(NOW, "enroll", "ok", "web-1", "10.0.0.9", "{}"))
            return tx.add_host(host())

        added = await store.transact(write)
        await store.close()
        store = await open_store(path)
        assert await store.transact(lambda tx: tx.token("t1")) == token()
        assert await store.transact(lambda tx: tx.host("web-1")) == added
        assert added.id > 0 and added.status is HostStatus.ACTIVE
        assert (await store.transact(lambda tx: tx.service("web.default.mesh.internal"))).index == 7  # type: ignore[union-attr]
        assert len(await store.transact(lambda tx: tx.audit(10))) == 1
        await store.close()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700

    asyncio.run(story())


def test_a_function_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    async def story() -> None:
        store = await open_store(tmp_path / "hub.db")

        def write(tx: Transaction) -> None:
            tx.put_token(token())
            raise ValueError("half way")

        with pytest.raises(ValueError, match="half way"):
            await store.transact(write)
        assert await store.transact(lambda tx: tx.tokens()) == ()
        await store.close()

    asyncio.run(story())


def test_two_active_hosts_of_one_name_are_refused_by_the_database_itself(tmp_path: Path) -> None:
    async def story() -> None:
        store = await open_store(tmp_path / "hub.db")
        await store.transact(lambda tx: tx.add_host(host()))
        with pytest.raises(MeshagentError):
            await store.transact(lambda tx: tx.add_host(host()))
        assert len(await store.transact(lambda tx: tx.hosts())) == 1
        await store.close()

    asyncio.run(story())


def test_a_newer_format_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "hub.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=9999")
    connection.close()
    with pytest.raises(MeshagentError) as caught:
        asyncio.run(open_store(path))
    assert caught.value.code == "store-too-new"


def test_garbage_instead_of_a_database_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "hub.db"
    path.write_bytes(b"this is no database, " * 1000)
    with pytest.raises(MeshagentError) as caught:
        asyncio.run(open_store(path))
    assert caught.value.code == "store-corrupt" and "hub restore" in caught.value.hint


CHILD = """
import asyncio, sys
from pathlib import Path
from datetime import UTC, datetime
from meshagent.hub.store.rows import AuditRow
from meshagent.hub.store.sqlite import open_store

async def main():
    store = await open_store(Path(sys.argv[1]))
    for n in range(100000):
        await store.transact(lambda tx: tx.add_audit(AuditRow(datetime.now(UTC), "n", "ok", str(n), "", "")))
        print(n, flush=True)

asyncio.run(main())
"""


def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "hub.db"
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    acknowledged = -1
    for line in child.stdout:
        acknowledged = int(line)
        if acknowledged == 50:
            os.kill(child.pid, signal.SIGKILL)
    child.wait()

    async def kept() -> set[str]:
        store = await open_store(path)
        rows = await store.transact(lambda tx: tx.audit(100_000))
        await store.close()
        return {row.subject for row in rows}

    assert {str(n) for n in range(acknowledged + 1)} <= asyncio.run(kept())
