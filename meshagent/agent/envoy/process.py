"""The proxy's supervisor: adopts the Envoy that lives, starts one where none does, starts it again when it dies.

Envoy is nobody's child here: it outlives the agent, and a restarted agent takes it back by proof (pid and start time,
the executable's device and inode, and that this very pid listens on the admin socket). Stopping this supervisor stops
nothing; only ``ending.end`` ends the proxy, when the host leaves. ``restart`` brings the next epoch beside it
(``handover.py`` says how the two part), ``relief.py`` looks after the one before until its last connection has ended.
"""

import asyncio
import contextlib
import os
import signal
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import structlog

from meshagent.agent.envoy import adopting, handover
from meshagent.agent.envoy.admin import Admin
from meshagent.agent.envoy.binary import Binary
from meshagent.agent.envoy.complaints import Complaints
from meshagent.agent.envoy.epochs import (
    CRASH_LOOP,
    HEALTHY_SECONDS,
    Verdict,
    deaths_in_a_row,
    look_wait,
    next_epoch,
    restart_wait,
)
from meshagent.agent.envoy.launch import Launcher
from meshagent.agent.envoy.looking import Looker
from meshagent.agent.envoy.record import Older, Record, Records
from meshagent.agent.envoy.relief import Relief
from meshagent.agent.envoy.state import Parent, ProxyState
from meshagent.agent.envoy.upgrade import changed_binary
from meshagent.machine import process, services
from meshagent.model.condition import ConditionSink
from meshagent.model.errors import MeshagentError
from meshagent.model.paths import Paths
from meshagent.runtime.clock import Clock, boot_seconds
from meshagent.runtime.latest import Latest

log = structlog.get_logger()

#: Seconds between looks at the binary on disk.
UPGRADE_LOOK = 10.0

#: A look may take this long: a main thread that takes in 1,000 clusters is busy for half a second.
ADMIN_PATIENCE = 1.0

#: How long the next epoch may take until it serves; 1,000 services from the cache take one second.
RESTART_PATIENCE = 30.0


@dataclass(frozen=True, slots=True)
class Held:
    """A proven process: its pidfd, closed by ``_hold``."""

    pidfd: int
    record: Record


class Proxy:
    """Supervises one root's Envoy while ``run`` runs. ``state`` is the newest known."""

    def __init__(self, paths: Paths, launcher: Launcher, conditions: ConditionSink, clock: Clock) -> None:
        self.state: Latest[ProxyState] = Latest(ProxyState())
        self.attempted = asyncio.Event()  # one was found or started, or a start has failed
        self._paths = paths
        self._launcher = launcher
        self._records = Records(paths)
        self._complaints = Complaints(conditions)
        self._clock = clock
        self._deaths = 0
        self._stopping = asyncio.Event()
        self._restarting: asyncio.Task[ProxyState] | None = None
        self._next: Held | None = None
        self._relieved = asyncio.Event()
        self._relief = Relief(paths, self._records, self._show_parent)

    @property
    def admin(self) -> Admin:
        """The admin interface of the newest epoch."""
        return Admin(self._launcher.admin_socket(self.state.value.epoch))

    async def prepare(self) -> None:
        """Ask the binary for its version ahead of time (0.1 s), so that no start, also after a crash, waits for it."""
        with contextlib.suppress(MeshagentError):  # told when it is needed
            await asyncio.to_thread(self._launcher.binary)

    async def run(self) -> None:
        """Until cancelled (the proxy goes on) or until ``stand_down`` was called."""
        held = await self._adopt()
        relieving = asyncio.create_task(self._relief.run())
        try:
            while not self._stopping.is_set():
                if held is None:
                    held = await self._start()
                    continue
                self.attempted.set()
                held = await self._hold(held)
        finally:
            relieving.cancel()
            await asyncio.gather(relieving, return_exceptions=True)

    def stand_down(self) -> None:
        """The proxy is about to be ended on purpose: don't start it again."""
        self._stopping.set()

    # --- finding it and starting it

    async def _adopt(self) -> Held | None:
        """The living proxy, or None when there is none that is proven ours."""
        began = self._clock.monotonic()
        found = await adopting.adopt(self._paths, self._records, self._launcher.uid)
        if found is None:
            return None
        record, pidfd = found
        self._publish(record, adopted=True)
        seconds = round(self._clock.monotonic() - began, 4)
        log.info("proxy adopted", pid=record.handle.pid, version=record.version, epoch=record.epoch, seconds=seconds)
        return Held(pidfd, record)

    async def _start(self) -> Held | None:
        """A new proxy; None when that failed (then the wait before the next attempt is over)."""
        try:
            record = await asyncio.to_thread(self._launch)
        except MeshagentError as error:
            self._deaths = deaths_in_a_row(self._deaths, 0)
            self._complaints.not_started(error)
            self.attempted.set()
            log.error("proxy not started", code=error.code, error=error.message)
            await self._pause(max(restart_wait(self._deaths), 1.0))
            return None
        self._complaints.started()
        self._publish(record, adopted=False)
        log.info("proxy started", pid=record.handle.pid, version=record.version)
        pidfd = services.adopt(record.handle)
        if pidfd is None:
            await self._died(0.0)
            return None
        return Held(pidfd, record)

    def _launch(self) -> Record:
        """In a thread: the first ``--version`` and the start itself block. A parent that lives stays on record."""
        program, before = self._launcher.binary(), self._records.load()
        parent = before.parent if before is not None else None
        if parent is not None and not handover.ours(self._paths, parent.handle, parent.epoch):
            parent = None
        base_id = self._records.base_id(used=parent.base_id if parent else 0)
        self._launcher.clean(base_id, parent)
        handle = self._launcher.start(program, 0, base_id)
        record = Record(handle, program.version, 0, base_id, parent=parent)
        self._records.save(record)
        return record

    def _publish(self, record: Record, *, adopted: bool, ready: bool = False) -> None:
        handle, before, now = record.handle, self.state.value, self._clock.now()
        state = ProxyState(handle.pid, handle.start, record.version, record.epoch, ready, before.restarts, now, adopted)
        self.state.set(replace(state, looping=before.looping, parent=_shown(record.parent)))

    def _show_parent(self, parent: Parent | None) -> None:
        self.state.set(replace(self.state.value, parent=parent))

    # --- hot restart

    async def restart(self) -> ProxyState:
        """The next epoch beside the living one; returns once it serves and the older one only serves what it has.

        Raises ``MeshagentError`` when two live already, or when the new one doesn't come to serve: then the old one
        goes on.
        """
        if self._restarting is not None and not self._restarting.done():
            raise MeshagentError("restarting", "the proxy is being restarted right now", hint="wait for it to end")
        record = self._records.load()
        if record is None or not services.alive(record.handle):
            raise MeshagentError("proxy-not-running", "there is no proxy to restart", hint="see `meshagent status`")
        older = record.parent
        next_epoch([record.epoch, *([older.epoch] if older and services.alive(older.handle) else [])])
        self._restarting = asyncio.create_task(self._relieve(record))
        return await asyncio.shield(self._restarting)  # whoever asked may go away in the middle

    async def _relieve(self, record: Record) -> ProxyState:
        """``coming`` stays on record when this agent ends in the middle: the next one goes on from there."""
        program = await asyncio.to_thread(self._launcher.binary)
        epoch = record.epoch + 1
        self._records.save(replace(record, parent=None, coming=program.version))
        try:
            handle = await asyncio.to_thread(self._launcher.start, program, epoch, record.base_id)
            pidfd = await self._serving(handle, program, epoch)
        except MeshagentError:
            self._records.save(replace(record, parent=None))
            raise
        if not handover.cut(self._paths.proxy_dir, record.base_id, record.epoch):
            log.warning("the older proxy can't be kept for its connections", pid=record.handle.pid)
        following = record.relieved_by(handle, program.version, time.time(), boot_seconds())
        self._records.save(following)
        self._next = Held(pidfd, following)
        self._publish(following, adopted=False, ready=True)
        self._relieved.set()
        log.info("proxy relieved", pid=handle.pid, version=program.version, epoch=epoch, before=record.handle.pid)
        return self.state.value

    async def _serving(self, handle: services.Handle, program: Binary, epoch: int) -> int:
        """A pidfd of the next epoch once it serves; it is ended when it doesn't come to that."""
        looker = Looker(Admin(self._launcher.admin_socket(epoch), ADMIN_PATIENCE), self._clock)
        began = self._clock.monotonic()
        while services.alive(handle) and (age := self._clock.monotonic() - began) < RESTART_PATIENCE:
            if (await looker.look()).ready and (pidfd := services.adopt(handle)) is not None:
                return pidfd
            await asyncio.sleep(look_wait(age, ready=False))
        await services.stop_async(handle, timeout=1.0)
        raise MeshagentError(
            "restart-failed",
            f"Envoy {program.version} did not come to serve; the proxy before it goes on",
            hint=f"see {self._launcher.log}, then try again",
        )

    # --- while it lives

    async def _hold(self, held: Held) -> Held | None:
        """Until the process has ended (None) or was relieved (its successor)."""
        looking = asyncio.create_task(self._look(held.record))
        waits = [
            asyncio.create_task(wait)
            for wait in (services.ended(held.pidfd), self._stopping.wait(), self._relieved.wait())
        ]
        born = self._clock.monotonic()
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (looking, *waits):
                task.cancel()
            await asyncio.gather(looking, *waits, return_exceptions=True)
            os.close(held.pidfd)
        if self._relieved.is_set():
            self._relieved.clear()
            following, self._next = self._next, None
            return following
        if not self._stopping.is_set():
            await self._died(self._clock.monotonic() - born)
        return None

    async def _look(self, record: Record) -> None:
        """Keeps ``state.ready`` and the conditions true to what the process answers."""
        admin, handle = Admin(self._launcher.admin_socket(record.epoch), ADMIN_PATIENCE), record.handle
        looker = Looker(admin, self._clock, served=self.state.value.ready or self.state.value.adopted)
        born, upgrade_due = self._clock.monotonic(), 0.0
        while True:
            look = await looker.look()
            if look.ready and not self.state.value.ready and record.parent is not None:  # found in the middle
                handover.cut(self._paths.proxy_dir, record.parent.base_id, record.parent.epoch)
            self._complaints.looked(handle.pid, look)
            self._ready(look.ready)
            if look.verdict is Verdict.REPLACE:
                log.error("proxy hangs and is ended", pid=handle.pid, silent_seconds=round(look.seconds, 1))
                process.send_signal(handle.pid, handle.start, signal.SIGKILL)
            now = self._clock.monotonic()
            if look.ready and now - born > HEALTHY_SECONDS:
                self._complaints.lives_well()
                self.state.set(replace(self.state.value, looping=False))
            if look.ready and now >= upgrade_due:
                upgrade_due = now + UPGRADE_LOOK
                await self._look_at_disk(record)
            self._launcher.bound_log()
            await asyncio.sleep(look_wait(now - born, ready=look.ready))

    def _ready(self, ready: bool) -> None:
        if ready and not self.state.value.ready:
            self._complaints.ready()
            log.info("proxy ready", pid=self.state.value.pid)
        self.state.set(replace(self.state.value, ready=ready))

    async def _look_at_disk(self, record: Record) -> None:
        found = await asyncio.to_thread(changed_binary, self._launcher, record.handle)
        self._complaints.on_disk(found, record.version)
        self.state.set(replace(self.state.value, upgrade=found))

    async def _died(self, lived: float) -> None:
        """It ended, and nobody asked for it."""
        self._deaths = deaths_in_a_row(self._deaths, lived)
        before, looping, wait = self.state.value, self._deaths >= CRASH_LOOP, restart_wait(self._deaths)
        gone = ProxyState(version=before.version, restarts=before.restarts + 1, since=self._clock.now())
        self.state.set(replace(gone, looping=looping, parent=before.parent))
        log.error("proxy ended unexpectedly", pid=before.pid, deaths=self._deaths, restart_in=wait)
        self._complaints.died(before.pid, self._deaths, looping, self._launcher.log)
        await self._pause(wait)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)


def _shown(older: Older | None) -> Parent | None:
    if older is None:
        return None
    return Parent(older.handle.pid, older.epoch, older.version, datetime.fromtimestamp(older.since, UTC))
