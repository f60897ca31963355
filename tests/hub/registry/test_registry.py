"""The registry on a real database, with a clock that a test can move."""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from meshagent.hub.registry.live import SessionEnded
from meshagent.hub.registry.registry import Registry, RegistrySettings
from meshagent.hub.state import EntryPort, MeshEndpoint, MeshService, ResourceViews, ServiceEntryView
from meshagent.hub.store.rows import HostRow, HostStatus
from meshagent.hub.store.sqlite import SqliteStore, open_store
from meshagent.model.service import ServiceProtocol
from tests.fakes.eventually import eventually
from tests.hub.hosts import JumpingClock, announced, announced_service, host_row, on_loop

SETTINGS = RegistrySettings("mesh.internal", "mesh.internal", "istio-system", grace=15.0)


class Bench:
    """A registry that runs, its store and its clock."""

    def __init__(self, store: SqliteStore, clock: JumpingClock) -> None:
        self.store, self.clock = store, clock
        self.registry = Registry(store, clock, SETTINGS)

    async def host(self, name: str, account: str = "cache") -> HostRow:
        row = await self.store.transact(lambda tx: tx.add_host(host_row(name, account)))
        self.registry.enrolled(row)
        return row

    def services(self) -> dict[str, MeshService]:
        return {s.name: s for s in self.registry.state.value.services}

    def endpoints(self) -> tuple[MeshEndpoint, ...]:
        return self.services()["cache"].endpoints if "cache" in self.services() else ()

    async def jump(self, seconds: float) -> None:
        self.clock.offset += seconds
        await self.registry._expire(self.clock.monotonic())
        await asyncio.sleep(0)


@asynccontextmanager
async def bench(path: Path, clock: JumpingClock | None = None) -> AsyncIterator[Bench]:
    store = await open_store(path / "hub.db")
    made = Bench(store, clock or JumpingClock())
    await made.registry.start(ResourceViews())
    try:
        yield made
    finally:
        await store.close()


@on_loop
async def test_a_name_goes_to_the_first_of_two_accounts_that_ask_at_the_same_moment(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        one, two = await b.host("a", "cache"), await b.host("b", "thief")
        sessions = b.registry.open(one.id), b.registry.open(two.id)
        answers = await asyncio.gather(*(b.registry.announce(s, announced(announced_service())) for s in sessions))
        assert [a[0].accepted for a in answers] == [True, False]
        assert "taken by service account cache" in answers[1][0].reason
        await eventually(b.services)
        assert [e.host_name for e in b.services()["cache"].endpoints] == ["a"]


@on_loop
async def test_a_silent_hosts_endpoints_go_after_the_grace_and_come_back_with_it(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        row = await b.host("a")
        session = b.registry.open(row.id)
        await b.registry.announce(session, announced(announced_service()))
        b.registry.close(session)
        await b.jump(14.9)
        await eventually(lambda: "cache" in b.services())
        await b.jump(0.2)
        await eventually(lambda: not b.services())
        before = await b.registry.announce(b.registry.open(row.id), announced(announced_service()))
        assert str(before[0].virtual_addresses[0]) == "240.240.0.1"
        await eventually(b.services)


@on_loop
async def test_a_partition_keeps_endpoints_as_stale_until_the_hosts_are_back(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        rows = [await b.host(f"h{n}") for n in range(4)]
        sessions = [b.registry.open(row.id) for row in rows]
        for session in sessions:
            await b.registry.announce(session, announced(announced_service()))
        for session in sessions[:2]:
            b.registry.close(session)
        await b.jump(20)
        await eventually(lambda: sum(e.stale for e in b.endpoints()) == 2)
        await b.registry.announce(b.registry.open(rows[0].id), announced(announced_service()))
        await b.jump(0)  # now one of four is silent: it goes
        await eventually(lambda: {e.host_name for e in b.endpoints()} == {"h0", "h2", "h3"})
        assert not any(e.stale for e in b.endpoints())


@on_loop
async def test_a_host_that_says_the_same_again_after_a_restart_changes_nothing(tmp_path: Path) -> None:
    said = announced(announced_service(), announced_service("queue", 1))
    async with bench(tmp_path) as b:
        row = await b.host("a")
        first = await b.registry.announce(b.registry.open(row.id), said)
    async with bench(tmp_path) as b:
        session = b.registry.open(row.id)
        await eventually(lambda: b.registry.state.value.hosts[0].connected)
        before, version = b.registry.hosts(), b.registry.state.version
        assert await b.registry.announce(session, replace(said, generation=said.generation + 1)) == first
        await asyncio.sleep(0.1)  # longer than changes are gathered
        assert b.registry.state.version == version
        assert b.registry.hosts() == before
        worse = replace(said, generation=said.generation + 2, services=said.services[:1])
        await b.registry.announce(session, worse)
        await eventually(lambda: set(b.services()) == {"cache"})


@on_loop
async def test_a_host_that_enrolled_again_as_somebody_else_is_judged_anew(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        row, other = await b.host("a"), await b.host("b")
        for each in (row, other):
            await b.registry.announce(b.registry.open(each.id), announced(announced_service()))
        b.registry.enrolled(replace(row, service_account="thief"))
        again = await b.registry.announce(
            b.registry.open(row.id), replace(announced(announced_service()), generation=9)
        )
        assert not again[0].accepted and "taken by service account cache" in again[0].reason


@on_loop
async def test_after_a_restart_known_endpoints_are_there_at_once_and_have_a_minute(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        session = b.registry.open((await b.host("a")).id)
        await b.registry.announce(session, announced(announced_service(), announced_service("queue", 1)))
    async with bench(tmp_path) as b:
        assert set(b.services()) == {"cache", "queue"}
        await b.jump(59)
        assert set(b.services()) == {"cache", "queue"}
        await b.jump(2)
        await eventually(lambda: not b.services())
    async with bench(tmp_path) as b:
        assert not b.services()


@on_loop
async def test_a_restart_admits_nobody_who_was_refused_before(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        one, two = await b.host("a"), await b.host("b")
        await b.registry.announce(b.registry.open(one.id), announced(announced_service()))
        refused = await b.registry.announce(b.registry.open(two.id), announced(announced_service(port=7000)))
        assert not refused[0].accepted
    async with bench(tmp_path) as b:
        assert [e.host_name for e in b.services()["cache"].endpoints] == ["a"]


@on_loop
async def test_what_an_older_stream_or_generation_says_changes_nothing(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        row = await b.host("a")
        older = b.registry.open(row.id)
        await b.registry.announce(older, announced(announced_service(), generation=5))
        await b.registry.announce(older, announced(generation=4))  # late: it would empty the host
        newer = b.registry.open(row.id)
        assert older.ended.is_set() and older.reason == "superseded"
        with pytest.raises(SessionEnded):
            await b.registry.announce(older, announced(generation=6))
        b.registry.close(older)
        await b.jump(100)
        await eventually(lambda: "cache" in b.services())
        await b.registry.announce(newer, announced(announced_service("queue", 1)))
        await eventually(lambda: set(b.services()) == {"queue"})


@on_loop
async def test_a_goodbye_leaves_at_once(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        session = b.registry.open((await b.host("a")).id)
        await b.registry.announce(session, announced(announced_service()))
        await b.registry.announce(session, announced(generation=2, goodbye=True))
        await eventually(lambda: not b.services())


@on_loop
async def test_a_revocation_is_not_undone_by_an_announcement_that_was_under_way(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        row = await b.host("a")
        session = b.registry.open(row.id)
        saying = asyncio.create_task(b.registry.announce(session, announced(announced_service())))
        await asyncio.sleep(0)
        from meshagent.hub.authority.enrolment import end_host

        await b.store.transact(lambda tx: end_host(tx, "a", HostStatus.REVOKED))
        b.registry.ended(row.id, "revoked")
        await asyncio.gather(saying, return_exceptions=True)
        ended = await b.store.transact(lambda tx: tx.host_by_id(row.id))
        assert ended is not None and ended.status is HostStatus.REVOKED
        await eventually(lambda: not b.services())


@on_loop
async def test_a_caller_that_is_cancelled_leaves_disk_and_memory_together(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        session = b.registry.open((await b.host("a")).id)
        saying = asyncio.create_task(b.registry.announce(session, announced(announced_service())))
        await asyncio.sleep(0.0)
        saying.cancel()
        await eventually(lambda: "cache" in b.services())


@on_loop
async def test_an_announcement_that_says_nothing_new_writes_and_publishes_nothing(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        session = b.registry.open((await b.host("a")).id)
        await b.registry.announce(session, announced(announced_service()))
        await eventually(b.services)
        version, files = b.registry.state.version, wal_size(tmp_path)
        for generation in range(2, 30):
            await b.registry.announce(session, announced(announced_service(), generation=generation))
        await asyncio.sleep(0.05)
        assert b.registry.state.version == version and wal_size(tmp_path) == files


@on_loop
async def test_a_change_of_health_is_published_beside_the_write_and_acknowledged_after_it(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        row = await b.host("a")
        session = b.registry.open(row.id)
        await b.registry.announce(session, announced(announced_service()))
        await eventually(b.endpoints)
        with contextlib.closing(sqlite3.connect(tmp_path / "hub.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")  # the disk is busy
            sick = announced(announced_service(healthy=False), generation=2)
            saying = asyncio.create_task(b.registry.announce(session, sick))
            await eventually(lambda: not b.endpoints()[0].healthy)
            assert not saying.done()
            other.execute("ROLLBACK")
        assert (await saying)[0].accepted
        kept_row = await b.store.read(lambda tx: tx.host_by_id(row.id))
        assert kept_row is not None and kept_row.announcement == b.registry.hosts()[0].row.announcement


@on_loop
async def test_a_new_name_is_published_only_once_its_address_is_on_disk(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        session = b.registry.open((await b.host("a")).id)
        with contextlib.closing(sqlite3.connect(tmp_path / "hub.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            saying = asyncio.create_task(b.registry.announce(session, announced(announced_service())))
            await asyncio.sleep(0.1)  # time in which it would be published, were it so
            assert not b.services() and not saying.done()
            other.execute("ROLLBACK")
        await saying
        await eventually(b.services)


def wal_size(path: Path) -> int:
    return (path / "hub.db-wal").stat().st_size


@on_loop
async def test_a_service_entrys_hosts_get_virtual_addresses_that_stay(tmp_path: Path) -> None:
    ports = (EntryPort(3306, ServiceProtocol.MYSQL, "mysql"),)
    entry = ServiceEntryView("default", "legacy", ("legacy.example.com",), ports, mesh=True)
    async with bench(tmp_path) as b:
        await b.registry.set_resources(ResourceViews(service_entries=(entry,)))
        await eventually(b.services)
        first = b.services()["legacy"].virtual4
        await b.registry.set_resources(ResourceViews())
        await eventually(lambda: not b.services())
        await b.registry.set_resources(ResourceViews(service_entries=(entry,)))
        await eventually(b.services)
        assert b.services()["legacy"].virtual4 == first


@on_loop
async def test_the_active_host_stays_the_active_one_while_others_come_and_over_its_own_absence(tmp_path: Path) -> None:
    clock = JumpingClock()
    async with bench(tmp_path, clock) as b:
        later, first = await b.host("a"), await b.host("z")
        for generation, row in enumerate((first, later), 1):
            session = b.registry.open(row.id)
            await b.registry.announce(session, announced(announced_service(), generation=generation))
        await eventually(lambda: [e.host_name for e in b.endpoints()] == ["z", "a"])
        away = b.registry.open(first.id)
        await b.registry.announce(away, announced(generation=9, goodbye=True))
        await eventually(lambda: [e.host_name for e in b.endpoints()] == ["a"])
    async with bench(tmp_path, clock) as b:  # the hub was restarted meanwhile
        session = b.registry.open(first.id)
        await b.registry.announce(session, announced(announced_service()))
        await eventually(lambda: [e.host_name for e in b.endpoints()] == ["z", "a"])
