"""The registry: who is there now. Announcement streams open and close, leases run, resources change; out comes the
newest ``MeshState`` through ``state``.

All of it runs on one event loop. An announcement is acknowledged only when it, its virtual addresses and its ownership
are on disk. Addresses and owners count only then, too: nobody may hear of one that a crash would give to another. All
else (health, endpoints of a name that is known) counts at once and is written meanwhile, later where the disk refuses:
the host says again what nobody acknowledged. A newer stream of a host supersedes the older one; what the older one
still says is refused by its number, whatever the clocks say.
"""

import asyncio
import contextlib
from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import structlog

from meshagent.hub.registry import kept
from meshagent.hub.registry.admission import Announcer, Verdict, admit
from meshagent.hub.registry.assemble import LiveHost, MeshFacts
from meshagent.hub.registry.incremental import Assembler
from meshagent.hub.registry.leases import GRACE, Lease, expire, first_grace
from meshagent.hub.registry.live import Host, Session, SessionEnded, rivals, row_after, says_again, since_after
from meshagent.hub.registry.publishing import Publishing
from meshagent.hub.registry.virtual import Allocation, Wanted, addresses_of, allocate, rebinds, record
from meshagent.hub.state import MeshState, ResourceViews
from meshagent.hub.store.interface import Store, Transaction
from meshagent.hub.store.rows import ANNOUNCED, HostRow, ServiceRow
from meshagent.hub.store.trouble import StoreError
from meshagent.model.errors import MeshagentError
from meshagent.protocol.announce import Announced, ServiceAnswer
from meshagent.runtime.clock import Clock
from meshagent.runtime.latest import Latest

log = structlog.get_logger()
T = TypeVar("T")

#: How often "last seen" of connected hosts is written.
SEEN_EVERY = 60.0


@dataclass(frozen=True, slots=True)
class RegistrySettings:
    """``grace`` seconds from the end of a host's stream to the end of its endpoints."""

    trust_domain: str
    zone: str
    root_namespace: str
    grace: float = GRACE


#: Between two looks at all leases, which a thousand hosts that come or go ask for each. A lease is 15 s.
_PAUSE = 0.1


class Registry:
    """Call ``start`` once, then ``run`` as a task; everything else at any time in between."""

    def __init__(self, store: Store, clock: Clock, settings: RegistrySettings) -> None:
        self._store = store
        self._clock = clock
        self._settings = settings
        self._hosts: dict[int, Host] = {}
        self._services: Mapping[str, ServiceRow] = {}
        self._indexes: tuple[Mapping[str, ServiceRow], dict[str, int]] = {}, {}  # of those services
        self._gone: set[int] = set()  # closed since "last seen" was written
        self._postponed: set[int] = set()  # announcements in force that the disk refused
        self._resources = ResourceViews()
        # one announcement at a time is decided, written and applied: two hosts that want one name are first and second
        self._deciding = asyncio.Lock()
        self._wake = asyncio.Event()
        self.state: Latest[MeshState] = Latest(MeshState(settings.trust_domain, settings.zone, settings.root_namespace))
        self._assembler = Assembler()
        self._publishing = Publishing(self.state, self._assemble)

    # --- start and run

    async def start(self, resources: ResourceViews) -> None:
        """Know again what was known before; known hosts get at least a minute to come back."""
        rows, services = await self._store.read(lambda tx: (tx.hosts(), tx.services()))
        self._services = {row.host: row for row in services}
        deadline = self._clock.monotonic() + first_grace(self._settings.grace)
        for row in rows:
            said = kept.from_bytes(row.announcement)
            host = Host(row, said.announced, since=said.since)
            self._hosts[row.id] = host
            if host.announced:
                host.deadline = deadline
                # kept are accepted services only; a name that has no row (a restored database) waits to be said again
                named = {host.name_of(s, self._settings.zone): s for s in host.announced.services}
                host.names = frozenset(named.keys() & self._services.keys())
                host.accepted = tuple(s for name, s in named.items() if name in host.names)
        await self.set_resources(resources)
        self._publishing.now()

    async def stop(self) -> None:
        """Write down who was seen last; streams are ended by their server."""
        with contextlib.suppress(StoreError):
            await self.write_postponed()
        await self._write_seen()

    async def run(self) -> None:
        """Let leases run out and write who was seen, until cancelled."""
        seen_at = self._clock.monotonic()
        while True:
            now = self._clock.monotonic()
            if now >= seen_at + SEEN_EVERY:
                seen_at = now
                await self._write_seen()
            await self._expire(now)
            await self._sleep(seen_at + SEEN_EVERY)

    async def _sleep(self, until: float) -> None:
        now = self._clock.monotonic()
        deadlines = [h.deadline for h in self._hosts.values() if h.deadline is not None and h.deadline > now]
        soon = min(deadlines, default=until)
        self._wake.clear()
        try:
            await asyncio.wait_for(self._wake.wait(), max(0.01, min(until, soon) - now))
        except TimeoutError:
            return
        await asyncio.sleep(_PAUSE)

    async def _write_seen(self) -> None:
        ids = tuple(host_id for host_id, host in self._hosts.items() if host.session or host_id in self._gone)
        self._gone.clear()
        now = self._clock.now()
        try:
            await self._store.transact(lambda tx: tx.touch_hosts(ids, now))
        except MeshagentError as error:
            log.warning("hub-last-seen-not-written", code=error.code, error=error.message)
            return
        for host_id in ids:
            if host_id in self._hosts:
                self._hosts[host_id].row = replace(self._hosts[host_id].row, last_seen=now)

    async def _expire(self, now: float) -> None:
        leases = [Lease(i, h.deadline) for i, h in self._hosts.items() if h.announced is not None]
        verdict = expire(leases, now)
        for host_id in verdict.stale:
            host = self._hosts[host_id]
            if not host.stale:
                host.stale = True
                log.warning("hub-lease-stale", host=host.row.name)
                self._changed()
        for host_id in verdict.drop:
            log.info("hub-lease-expired", host=self._hosts[host_id].row.name)
            await self._forget_announcement(host_id)

    async def _forget_announcement(self, host_id: int) -> None:
        async with self._deciding:
            host = self._hosts.get(host_id)
            if host is None or host.session is not None:  # it came back while we waited
                return
            host.deadline, host.stale = None, False
            try:
                await self._take(host, None, ())
            except MeshagentError as error:  # gone from the mesh all the same; after a restart it expires once more
                log.warning("hub-lease-not-written", host=host.row.name, code=error.code, error=error.message)
                self._apply(host, host.row, None, ())

    # --- hosts

    def enrolled(self, row: HostRow, ended: HostRow | None = None) -> None:
        """A host enrolled (again); ``ended`` is the enrolment it took over."""
        if ended is not None:
            self.ended(ended.id, "replaced")
        known = self._hosts.get(row.id)
        if known:
            known.row = replace(row, announcement=known.row.announcement)
        else:
            self._hosts[row.id] = Host(row)
        self._publishing.now()  # at once: the host's streams may follow within milliseconds

    def ended(self, host_id: int, reason: str) -> None:
        """An enrolment ended (left, replaced, revoked): its endpoints go at once, its stream closes."""
        host = self._hosts.pop(host_id, None)
        if host is None:
            return
        if host.session:
            host.session.end(reason)
        self._publishing.now()

    def hosts(self) -> tuple[LiveHost, ...]:
        """All enrolled hosts, by name."""
        return tuple(sorted((h.live() for h in self._hosts.values()), key=lambda h: h.row.name))

    # --- announcements

    def open(self, host_id: int) -> Session:
        """A stream of this host begins; an older one ends. Raises ``SessionEnded`` for a host that isn't enrolled."""
        host = self._hosts.get(host_id)
        if host is None:
            raise SessionEnded("unknown-host", "this host is not enrolled here")
        if host.session:
            host.session.end("superseded")
        host.session = Session(host_id, host.row.name)
        host.deadline = None
        host.stale = False
        self._changed()
        return host.session

    def close(self, session: Session) -> None:
        """The stream has ended: from now on the lease runs. Of a superseded one nothing more is heard."""
        host = self._hosts.get(session.host_id)
        session.end("closed")
        if host is None or host.session is not session:
            return
        host.session = None
        host.row = replace(host.row, last_seen=self._clock.now())
        self._gone.add(session.host_id)
        host.deadline = self._clock.monotonic() + self._settings.grace if host.announced else None
        self._changed()

    async def announce(self, session: Session, announced: Announced) -> tuple[ServiceAnswer, ...]:
        """Take an announcement whole; answers once it is on disk. An older generation than heard changes nothing.

        Raises ``SessionEnded`` when this stream doesn't speak for the host any more.
        """
        return await _whole(self._announce(session, announced))

    async def _announce(self, session: Session, announced: Announced) -> tuple[ServiceAnswer, ...]:
        async with self._deciding:
            host = self._current(session)
            if announced.generation <= session.generation:
                return self._answers(host, announced)
            session.generation = announced.generation
            if announced.goodbye:
                await self._take(host, None, ())
                return ()
            if says_again(host, announced, self._services, self._settings.zone):
                zone = self._settings.zone
                known = tuple(Verdict(each, host.name_of(each, zone)) for each in announced.services)
                return self._answers(host, announced, known)
            verdicts = self._admit(host, announced)
            await self._take(host, announced, verdicts)
            return self._answers(host, announced, verdicts)

    def _current(self, session: Session) -> Host:
        host = self._hosts.get(session.host_id)
        if host is None or host.session is not session:
            reason = session.reason or "superseded"
            raise SessionEnded(f"session-{reason}", f"this stream of host {session.host_name} has ended ({reason})")
        return host

    def _admit(self, host: Host, announced: Announced) -> tuple[Verdict, ...]:
        accounts = {h.row.service_account for h in self._hosts.values() if h.row.namespace == host.row.namespace}
        announcer = Announcer(host.row.namespace, host.row.service_account, host.row.services, frozenset(accounts))
        names = frozenset(host.name_of(service, self._settings.zone) for service in announced.services)
        known = rivals(host, names, self._hosts.values(), self._services, self._settings.zone)
        return admit(announcer, announced.services, known, self._settings.zone, self._clock.now())

    async def _take(self, host: Host, announced: Announced | None, verdicts: tuple[Verdict, ...]) -> None:
        """On disk and in force; first on disk where an address or its owner changes (see the module's docstring)."""
        accepted = tuple(v.service for v in verdicts if v.accepted)
        names = frozenset(v.host for v in verdicts if v.accepted)
        since = since_after(host, names, self._hosts.values(), self._clock.now())
        row = row_after(host.row, announced, accepted, since)
        wanted = {name: Wanted(host.row.namespace, host.row.service_account) for name in names}
        plan = self._plan(wanted, host.names - names)
        new = row if row != host.row else None
        if not plan.changed:
            self._apply(host, row, announced, verdicts)
        await self._write(new, plan)
        if plan.changed:
            self._apply(host, row, announced, verdicts)

    def _apply(self, host: Host, row: HostRow, announced: Announced | None, verdicts: tuple[Verdict, ...]) -> None:
        accepted = tuple(v.service for v in verdicts if v.accepted)
        # only what was announced: meanwhile the host may have enrolled again, or have been seen
        host.row = replace(host.row, **{name: getattr(row, name) for name in ANNOUNCED})
        host.names = frozenset(v.host for v in verdicts if v.accepted)
        host.since = kept.from_bytes(row.announcement).since
        if host.session is None and announced is not None and host.deadline is None:
            host.deadline = self._clock.monotonic() + self._settings.grace
        if (host.announced, host.accepted) != (announced, accepted):
            host.announced, host.accepted = announced, accepted
            self._changed()

    def _plan(self, wanted: Mapping[str, Wanted], released: frozenset[str]) -> Allocation:
        return allocate(self._services, wanted, released, self._in_use, self._clock.now())

    async def _write(self, row: HostRow | None, plan: Allocation) -> None:
        """One transaction, and none when nothing changes: a thousand agents that come back write nothing.

        Raises ``StoreError`` where a virtual address or its owner would change, or it is nobody's announcement.
        """
        if row is None and not plan.changed:
            return

        def work(tx: Transaction) -> None:
            if row is not None:
                tx.put_announcement(row)
            record(tx, plan)

        try:
            await self._store.transact(work)
        except StoreError as error:
            if row is None or rebinds(self._services, plan):
                raise
            self._postponed.add(row.id)
            log.warning("hub-announcement-not-written", host=row.name, code=error.code, error=error.message)
        else:
            if row is not None:
                self._postponed.discard(row.id)
        self._services = plan.rows

    async def write_postponed(self) -> None:
        """The disk takes changes again: write what it refused. Raises ``StoreError`` when it still doesn't."""
        async with self._deciding:
            rows = [self._hosts[host_id].row for host_id in self._postponed if host_id in self._hosts]
            if rows:
                await self._store.transact(lambda tx: _put_all(tx, rows))
                log.info("hub-announcements-written", hosts=len(rows))
            self._postponed.clear()

    def _in_use(self) -> frozenset[str]:
        entries = (host for entry in self._resources.service_entries for host in entry.hosts)
        return frozenset(entries).union(*(host.names for host in self._hosts.values()))

    def _answers(
        self, host: Host, announced: Announced, verdicts: tuple[Verdict, ...] | None = None
    ) -> tuple[ServiceAnswer, ...]:
        verdicts = self._admit(host, announced) if verdicts is None else verdicts
        refused = [ServiceAnswer(name, False, reason) for name, reason in announced.refused.items()]
        return (*(self._answer(verdict) for verdict in verdicts), *refused)

    def _answer(self, verdict: Verdict) -> ServiceAnswer:
        row = self._services.get(verdict.host)
        addresses = addresses_of(row.index) if verdict.accepted and row else ()
        return ServiceAnswer(verdict.service.declared.name, verdict.accepted, verdict.reason, verdict.host, addresses)

    # --- resources

    async def set_resources(self, resources: ResourceViews) -> None:
        """The applied resources are these now; each ServiceEntry's host names get their virtual addresses."""
        await _whole(self._set_resources(resources))

    async def _set_resources(self, resources: ResourceViews) -> None:
        async with self._deciding:
            hosts = {host: Wanted(entry.namespace) for entry in resources.service_entries for host in entry.hosts}
            before = {host for entry in self._resources.service_entries for host in entry.hosts}
            await self._write(None, self._plan(hosts, frozenset(before - hosts.keys())))
            self._resources = resources
            self._publishing.now()

    # --- publishing

    def _changed(self) -> None:
        self._wake.set()
        self._publishing.soon()

    def _assemble(self) -> MeshState:
        return self._assembler.update(self._facts())

    def _facts(self) -> MeshFacts:
        if self._indexes[0] is not self._services:
            self._indexes = self._services, {host: row.index for host, row in self._services.items()}
        return MeshFacts(
            self._settings.trust_domain,
            self._settings.zone,
            self._settings.root_namespace,
            tuple(host.live() for host in self._hosts.values()),
            self._indexes[1],
            self._resources,
        )


def _put_all(tx: Transaction, rows: Iterable[HostRow]) -> None:
    for row in rows:
        tx.put_announcement(row)


async def _whole(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` to its end even when the caller is cancelled: disk and memory must not part."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_heard)
        raise


def _heard(task: "asyncio.Future[Any]") -> None:
    with contextlib.suppress(BaseException):
        task.result()
