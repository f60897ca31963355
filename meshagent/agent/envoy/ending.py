"""The end of the proxy for good: politely while somebody is connected, then surely, then without a trace.

Works with and without a running agent, after a crash of either, and with two epochs.
"""

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from meshagent.agent.envoy.admin import Admin, AdminError
from meshagent.agent.envoy.record import Records, segment
from meshagent.machine import files, services
from meshagent.machine.services import Handle
from meshagent.model.paths import Paths

#: Seconds between questions whether the last connection has ended.
_LOOK = 0.1


async def end(paths: Paths, *, grace: float = 5.0, idle: Callable[[Admin], Awaitable[bool]] | None = None) -> bool:
    """End the recorded proxy for good and remove what it leaves.

    Drains first: listeners close politely, then up to ``grace`` seconds until no connection is open. True when one was
    running. Harmless when there is none. Raises ``MeshagentError`` when it can't be ended.
    """
    records = Records(paths)
    record = records.load()
    handles = record.handles() if record is not None else ()
    running = [handle for handle in handles if services.alive(handle)]
    if record is not None and running:
        records.save(replace(record, draining=True))
        await drain(Admin(admin_socket(paths, record.epoch)), running, grace, idle or is_idle)
        # What is open now is cut either way; a young epoch that is asked to end first asks the one before for numbers.
        number = signal.SIGKILL if len(running) > 1 else signal.SIGTERM
        await asyncio.gather(*(services.stop_async(handle, number=number) for handle in running))
    for base_id in record.base_ids() if record is not None else ():
        files.remove_file(segment(base_id))
    records.clear()
    records.forget_base_id()
    files.remove_tree(paths.proxy_dir)
    for leftover in [*paths.run.glob("proxy-*.json"), paths.run / "proxy.log"]:
        files.remove_file(leftover)
    return bool(running)


async def is_idle(admin: Admin) -> bool:
    """No connection of a client is open.

    The gauges of the listeners are of this moment; ``server.total_connections`` is set by the flush only.
    """
    found = await admin.stats(r"^listener\..*\.downstream_cx_active$")
    return not any(count for name, count in found.items() if not name.startswith("listener.admin."))


async def drain(admin: Admin, running: list[Handle], grace: float, idle: Callable[[Admin], Awaitable[bool]]) -> None:
    """Until no connection is open, the processes are gone, or ``grace`` seconds are over.

    One answer that doesn't come is no reason to cut connections: the main thread may be busy, or the admin interface
    gone while the workers go on. What was not heard is asked again.
    """
    deadline, asked = time.monotonic() + grace, False
    while (left := deadline - time.monotonic()) > 0:
        with contextlib.suppress(AdminError, TimeoutError):
            async with asyncio.timeout(left):
                if not asked:
                    await admin.fail_healthcheck()
                    await admin.drain_listeners()
                    asked = True
                if await idle(admin):
                    return
        if not any(services.alive(handle) for handle in running):
            return
        await asyncio.sleep(min(_LOOK, max(0.0, deadline - time.monotonic())))


def admin_socket(paths: Paths, epoch: int) -> Path:
    """Where that epoch serves its admin interface."""
    return paths.proxy_dir / f"admin-{epoch}.sock"
