"""The end of the proxy for good: politely while somebody is connected, then surely, then without a trace.

Works with and without a running agent, after a crash of either, and with two epochs.
"""

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import structlog

from meshagent.agent.envoy import farewell, handover
from meshagent.agent.envoy.admin import Admin, AdminError
from meshagent.agent.envoy.record import Record, Records
from meshagent.machine import files, services, sockets
from meshagent.machine.segments import segment
from meshagent.machine.services import Handle
from meshagent.machine.sockets import Connection
from meshagent.model.errors import MeshagentError
from meshagent.model.paths import Paths
from meshagent.model.ports import HBONE

log = structlog.get_logger()

#: Seconds between looks whether the last connection has ended; one takes 15 ms.
_LOOK = 0.15
#: Between two words of it to whoever waits.
_SHOW = 1.0
#: How long a proxy that hangs may hold up who only wants to say that it isn't ready any more.
_READINESS_PATIENCE = 1.0
#: While peers' proxies are connected a tunnel of theirs may be about to reach its application.
_UNUSED = 0.5
#: A proxy that can't be told to drain (it hangs) and has served nobody for so long is not waited for.
_SILENT_AND_UNUSED = 3.0
#: A drained proxy ends within 0.1 s; one that hangs is killed after this.
_END_PATIENCE = 3.0

#: Hears, about once a second, the connections of this network and how many seconds are left.
Watcher = Callable[[tuple[Connection, ...], float], None]


async def fail_readiness(paths: Paths) -> None:
    """From now on the proxy's own health check says no; best effort."""
    record = Records(paths).load()
    if record is not None and services.alive(record.handle):
        with contextlib.suppress(AdminError):
            await Admin(admin_socket(paths, record.epoch), _READINESS_PATIENCE).fail_healthcheck()


async def end(paths: Paths, *, grace: float = 5.0, watch: Watcher | None = None) -> bool:
    """End the recorded proxy for good and remove what it leaves.

    Drains first: listeners close politely, then up to ``grace`` seconds until no connection is in use. True when one
    was running. Harmless when there is none. Raises ``MeshagentError`` when it can't be ended.
    """
    records = Records(paths)
    record = records.load()
    running = [handle for handle, epoch in record.epochs() if handover.ours(paths, handle, epoch)] if record else []
    if record is not None and running:
        records.save(replace(record, draining=True))
        await _drain(paths, record, running, grace, watch)
        # What is open now is cut either way; a young epoch that is asked to end first asks the one before for numbers.
        number = signal.SIGKILL if len(running) > 1 else signal.SIGTERM
        await asyncio.gather(*(services.stop_async(handle, timeout=_END_PATIENCE, number=number) for handle in running))
    for base_id in record.base_ids() if record is not None else ():
        files.remove_file(segment(base_id))
    records.clear()
    records.forget_base_id()
    files.remove_tree(paths.proxy_dir)
    for leftover in [*paths.run.glob("proxy-*.json"), paths.run / "proxy.log"]:
        files.remove_file(leftover)
    farewell.clean(paths)
    return bool(running)


async def _drain(paths: Paths, record: Record, running: list[Handle], grace: float, watch: Watcher | None) -> None:
    """Until no connection is in use, the processes are gone, or ``grace`` seconds are over.

    The sockets tell who is connected, without the proxy being asked: its main thread may be busy, or the admin
    interface gone while the workers go on. What it didn't hear is said again.
    """
    if grace <= 0:
        return
    admin = Admin(admin_socket(paths, record.epoch))
    began = used = time.monotonic()
    told, shown = False, 0.0
    _let_idle_ones_go(paths, record)
    while (left := grace - (time.monotonic() - began)) > 0 and any(services.alive(handle) for handle in running):
        found, now = await connected(), time.monotonic()
        if watch is not None and found is not None and now - shown >= _SHOW:
            watch(found, left)
            shown = now
        if found is None or any(in_use(found, handle.pid) for handle in running):
            used = now
        elif now - used >= _patience(found, running, told=told):
            return
        with contextlib.suppress(AdminError, TimeoutError):
            async with asyncio.timeout(left):
                told = told or await _tell(admin)
        await asyncio.sleep(min(_LOOK, max(0.0, left)))


def _patience(found: Iterable[Connection], running: Iterable[Handle], *, told: bool) -> float:
    """Seconds without a connection in use after which there is nothing to wait for."""
    if not told:
        return _SILENT_AND_UNUSED
    pids = {handle.pid for handle in running}
    return _UNUSED if any(owner.pid in pids for each in found for owner in each.owners) else 0.0


async def _tell(admin: Admin) -> bool:
    await admin.fail_healthcheck()
    await admin.drain_listeners()
    return True


def _let_idle_ones_go(paths: Paths, record: Record) -> None:
    with contextlib.suppress(MeshagentError):  # a full disk must keep nobody in the mesh
        farewell.write(paths, record.base_id, record.epoch, go=True)


async def connected() -> tuple[Connection, ...] | None:
    """All connections of this network; None while the kernel doesn't tell (no memory, no descriptor left).

    Who isn't told takes every connection for one in use.
    """
    try:
        return await asyncio.to_thread(sockets.connections)
    except MeshagentError as error:
        log.warning("connections are not known", code=error.code, error=error.message)
        return None


def in_use(found: Iterable[Connection], pid: int) -> int:
    """How many connections of the proxy ``pid`` belong to an application: all but those between proxies.

    A tunnel of a peer is an HTTP/2 stream with a connection to the application behind it, or one of an application here
    before it; an HTTP/2 connection between two proxies without either carries nothing.
    """
    ours = [c for c in found if any(owner.pid == pid for owner in c.owners)]
    return sum(HBONE not in (c.local_port, c.remote_port) for c in ours)


def admin_socket(paths: Paths, epoch: int) -> Path:
    """Where that epoch serves its admin interface."""
    return paths.proxy_dir / f"admin-{epoch}.sock"
