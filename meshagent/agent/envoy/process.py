"""The proxy's supervisor: adopts the Envoy that lives, starts one where none does, starts it again when it dies.

Envoy is nobody's child here: it outlives the agent, and a restarted agent takes it back by proof (pid and start time,
the executable's device and inode, and that this very pid listens on the admin socket). Stopping this supervisor stops
nothing; only ``end`` ends the proxy, when the host leaves.
"""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import structlog

from meshagent.agent.envoy import binary
from meshagent.agent.envoy.admin import Admin, AdminError
from meshagent.agent.envoy.epochs import (
    CRASH_LOOP,
    HEALTHY_SECONDS,
    Found,
    Start,
    deaths_in_a_row,
    on_start,
    restart_wait,
)
from meshagent.agent.envoy.launch import Launcher
from meshagent.agent.envoy.record import Record, Records
from meshagent.machine import files, services
from meshagent.model.condition import ConditionSink
from meshagent.model.errors import MeshagentError
from meshagent.model.paths import Paths
from meshagent.runtime.clock import Clock
from meshagent.runtime.latest import Latest

log = structlog.get_logger()

NOT_RUNNING = "proxy-not-running"
CRASHING = "proxy-crash-loop"

#: Seconds between looks at a proxy that is starting, and at one that serves.
STARTING_LOOK = 0.02
SERVING_LOOK = 1.0

#: So many looks in a row without an answer before a proxy that served counts as not ready: one may be a busy moment.
MISSED_LOOKS = 3


@dataclass(frozen=True, slots=True)
class ProxyState:
    """``pid`` 0: none runs. ``start_time``: clock ticks after boot (proc(5)); ``since``: when this process was found
    or started; ``restarts``: deaths seen by this agent; ``adopted``: it was running before this agent."""

    pid: int = 0
    start_time: int = 0
    version: str = ""
    epoch: int = 0
    ready: bool = False
    restarts: int = 0
    since: datetime | None = None
    adopted: bool = False


class Proxy:
    """Supervises one root's Envoy while ``run`` runs. ``state`` is the newest known."""

    def __init__(
        self,
        paths: Paths,
        launcher: Launcher,
        conditions: ConditionSink,
        clock: Clock,
        *,
        configured: Path | None = None,
        forced: bool = False,
    ) -> None:
        self.state: Latest[ProxyState] = Latest(ProxyState())
        self._launcher = launcher
        self._records = Records(paths)
        self._conditions = conditions
        self._clock = clock
        self._configured = configured
        self._forced = forced
        self._deaths = 0
        self._stopping = asyncio.Event()

    @property
    def admin(self) -> Admin:
        """The admin interface of the newest epoch."""
        return Admin(self._launcher.admin_socket(self.state.value.epoch))

    async def prepare(self) -> None:
        """Ask the binary for its version ahead of time (0.1 s), so that no start, also after a crash, waits for it."""
        with contextlib.suppress(MeshagentError):  # told when it is needed
            await asyncio.to_thread(self._examine)

    async def run(self) -> None:
        """Until cancelled (the proxy goes on) or until ``stand_down`` was called."""
        pidfd = await self._adopt()
        while not self._stopping.is_set():
            if pidfd is None:
                pidfd = await self._start()
            if pidfd is not None:
                try:
                    await self._watch(pidfd)
                finally:
                    os.close(pidfd)
                pidfd = None
                await self._died()

    def stand_down(self) -> None:
        """The proxy is about to be ended on purpose: don't start it again."""
        self._stopping.set()

    # --- finding it and starting it

    async def _adopt(self) -> int | None:
        """A pidfd of the living proxy, or None when there is none that is proven ours."""
        record = self._records.load()
        pidfd = services.adopt(record.handle) if record else None
        owner = await _owner(self._launcher.admin_socket(record.epoch)) if record and pidfd is not None else 0
        proven = record is not None and pidfd is not None and owner == record.handle.pid
        found = Found(record is not None, proven, record.draining if record else False)
        if on_start(found) is Start.ADOPT and record is not None:
            self._publish(record, adopted=True)
            log.info("proxy adopted", pid=record.handle.pid, version=record.version)
            return pidfd
        if pidfd is not None and record is not None:  # the recorded process, but it can't be managed any more
            os.close(pidfd)
            await services.stop_async(record.handle)
        return None

    async def _start(self) -> int | None:
        """A pidfd of a new proxy; None when that failed (then the wait before the next attempt is over)."""
        try:
            handle, record = await asyncio.to_thread(self._launch)
        except MeshagentError as error:
            self._deaths = deaths_in_a_row(self._deaths, 0)
            self._conditions.set(NOT_RUNNING, error.message)
            log.error("proxy not started", code=error.code, error=error.message)
            await self._pause(max(restart_wait(self._deaths), 1.0))
            return None
        self._publish(record, adopted=False)
        log.info("proxy started", pid=handle.pid, version=record.version)
        return services.adopt(handle)

    def _launch(self) -> tuple[services.Handle, Record]:
        """In a thread: the first ``--version`` and the start itself block."""
        program = self._examine()
        base_id = self._records.base_id()
        handle = self._launcher.start(program, 0, base_id)
        record = Record(handle, program.version, 0, base_id)
        self._records.save(record)
        return handle, record

    def _examine(self) -> binary.Binary:
        return binary.examine(binary.find(self._configured), forced=self._forced)

    def _publish(self, record: Record, *, adopted: bool) -> None:
        handle = record.handle
        restarts, now = self.state.value.restarts, self._clock.now()
        self.state.set(
            ProxyState(handle.pid, handle.start, record.version, record.epoch, False, restarts, now, adopted)
        )

    # --- while it lives

    async def _watch(self, pidfd: int) -> None:
        """Until the process has ended."""
        looking = asyncio.create_task(self._look())
        stopping = asyncio.create_task(self._stopping.wait())
        ended = asyncio.create_task(services.ended(pidfd))
        born = self._clock.monotonic()
        try:
            await asyncio.wait((ended, stopping), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (looking, stopping, ended):
                task.cancel()
            await asyncio.gather(looking, stopping, ended, return_exceptions=True)
        lived = self._clock.monotonic() - born
        self._deaths = deaths_in_a_row(self._deaths, lived)

    async def _look(self) -> None:
        """Keeps ``state.ready`` true to the admin interface."""
        admin, missed, born = self.admin, 0, self._clock.monotonic()
        while True:
            try:
                ready, missed = await is_ready(admin), 0
            except AdminError:
                missed += 1
                ready = self.state.value.ready and missed < MISSED_LOOKS
            self._ready(ready)
            if ready and self._clock.monotonic() - born > HEALTHY_SECONDS:
                self._conditions.clear(CRASHING)
            self._launcher.bound_log()
            await asyncio.sleep(SERVING_LOOK if ready else STARTING_LOOK)

    def _ready(self, ready: bool) -> None:
        if ready and not self.state.value.ready:
            self._conditions.clear(NOT_RUNNING)
            log.info("proxy ready", pid=self.state.value.pid)
        self.state.set(replace(self.state.value, ready=ready))

    async def _died(self) -> None:
        """It ended, and nobody asked for it."""
        if self._stopping.is_set():
            return
        before = self.state.value
        self.state.set(ProxyState(version=before.version, restarts=before.restarts + 1, since=self._clock.now()))
        wait = restart_wait(self._deaths)
        log.error("proxy ended unexpectedly", pid=before.pid, deaths=self._deaths, restart_in=wait)
        self._conditions.set(NOT_RUNNING, f"the proxy (pid {before.pid}) ended; it is being started again")
        if self._deaths >= CRASH_LOOP:
            text = f"the proxy ended {self._deaths} times in a row; its log: {self._launcher.log}"
            self._conditions.set(CRASHING, text)
        await self._pause(wait)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)


async def is_ready(admin: Admin) -> bool:
    """LIVE, workers started, and clusters and listeners have come at least once. Raises ``AdminError``."""
    if await admin.state() != "LIVE":
        return False
    names = (
        "listener_manager.workers_started",
        "cluster_manager.cds.update_success",
        "listener_manager.lds.update_success",
    )
    found = await admin.stats("^(" + "|".join(name.replace(".", "\\.") for name in names) + ")$")
    return all(found.get(name, 0) > 0 for name in names)


async def end(paths: Paths, *, grace: float = 5.0, idle: Callable[[Admin], Awaitable[bool]] | None = None) -> bool:
    """End the recorded proxy for good and remove what it leaves; works with and without a running agent.

    Drains first: listeners close politely, then up to ``grace`` seconds until no connection is open. True when one was
    running. Harmless when there is none. Raises ``MeshagentError`` when it can't be ended.
    """
    records = Records(paths)
    record = records.load()
    was_running = record is not None and services.alive(record.handle)
    if record is not None and was_running:
        records.save(replace(record, draining=True))
        await _drain(Admin(paths.proxy_dir / f"admin-{record.epoch}.sock"), grace, idle or is_idle)
        await services.stop_async(record.handle)
    records.clear()
    records.forget_base_id()
    files.remove_tree(paths.proxy_dir)
    for leftover in [*paths.run.glob("proxy-*.json"), paths.run / "proxy.log"]:
        files.remove_file(leftover)
    return was_running


async def is_idle(admin: Admin) -> bool:
    """No connection of a client is open.

    The gauges of the listeners are of this moment; ``server.total_connections`` is set by the flush every 5 s only.
    """
    found = await admin.stats(r"^listener\..*\.downstream_cx_active$")
    return not any(count for name, count in found.items() if not name.startswith("listener.admin."))


async def _drain(admin: Admin, grace: float, idle: Callable[[Admin], Awaitable[bool]]) -> None:
    """A proxy whose admin interface is gone can't drain; it is ended all the same."""
    with contextlib.suppress(AdminError, TimeoutError):
        async with asyncio.timeout(grace):
            await admin.fail_healthcheck()
            await admin.drain_listeners()
            while not await idle(admin):  # noqa: ASYNC110 - another process knows, and it can only be asked
                await asyncio.sleep(0.1)


async def _owner(socket: Path) -> int:
    """Pid that listens on the admin socket, 0 when nobody does."""
    try:
        return await Admin(socket).owner()
    except AdminError:
        return 0
