"""Connections through the proxy that outlast the drain: who they belong to, so that closing them is never silent."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Sequence

from meshagent.agent.envoy import ending as envoy
from meshagent.agent.envoy.admin import Admin
from meshagent.agent.envoy.record import Records
from meshagent.machine import sockets
from meshagent.machine.sockets import Connection
from meshagent.model.paths import Paths
from meshagent.model.ports import HBONE, OUTBOUND

#: Reading all sockets with their owners takes 15 ms; the drain asks ten times a second.
_LOOK_SECONDS = 1.0


async def end_proxy(paths: Paths, grace: float) -> tuple[bool, list[str]]:
    """End the proxy after at most ``grace`` seconds: (one was running, what was closed that didn't end by itself)."""
    record = Records(paths).load()
    if record is None:
        return await envoy.end(paths, grace=grace), []
    pid, looked = record.handle.pid, time.monotonic()
    held = describe(await asyncio.to_thread(sockets.connections), pid)

    async def idle(admin: Admin) -> bool:
        nonlocal held, looked
        if await envoy.is_idle(admin):
            held = []
            return True
        if time.monotonic() - looked > _LOOK_SECONDS:
            held, looked = describe(await asyncio.to_thread(sockets.connections), pid), time.monotonic()
        return False

    was_running = await envoy.end(paths, grace=grace, idle=idle)
    return was_running, held if was_running else []


def describe(found: Sequence[Connection], proxy: int) -> list[str]:
    """One line for each program here, and each host, that has connections through the proxy ``proxy`` (a pid)."""
    ours = [c for c in found if any(owner.pid == proxy for owner in c.owners)]
    peers = Counter(f"from {c.remote_ip}" for c in ours if c.local_port == HBONE)
    programs = Counter(_programs([c for c in ours if c.local_port == OUTBOUND], found))
    return [f"{count} connection{'s' if count > 1 else ''} {who}" for who, count in sorted((peers + programs).items())]


def _programs(accepted: Iterable[Connection], found: Sequence[Connection]) -> Iterable[str]:
    """The other end of what the proxy accepted from this host is a socket here, and it knows where it meant to go."""
    other_ends = {(c.local_ip, c.local_port): c for c in found if c.local_port != OUTBOUND}
    for each in accepted:
        client = other_ends.get((each.remote_ip, each.remote_port))
        if client is None or not client.owners:
            yield f"of a program at {each.remote_ip}"
        else:
            owner = client.owners[0]
            yield f"of {owner.name} (pid {owner.pid}) to {client.remote_ip} port {client.remote_port}"
