"""Connections through the proxy that outlast the drain: who they belong to, so that closing them is never silent."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from meshagent.agent.envoy import ending
from meshagent.agent.envoy.record import Records
from meshagent.machine import sockets
from meshagent.machine.sockets import Connection
from meshagent.model.paths import Paths
from meshagent.model.ports import HBONE, OUTBOUND


async def end_proxy(paths: Paths, grace: float, progress: Callable[[str], None]) -> tuple[bool, list[str]]:
    """End the proxy after at most ``grace`` seconds: (one was running, what was closed that didn't end by itself).

    ``progress`` hears how many connections are still in use.
    """
    record = Records(paths).load()
    pids = [handle.pid for handle in record.handles()] if record is not None else []
    held: list[str] = []
    last = -1

    def watch(found: tuple[Connection, ...], left: float) -> None:
        nonlocal held, last
        count = sum(ending.in_use(found, pid) for pid in pids)
        held = [line for pid in pids for line in describe(found, pid)] if count else []
        if count and count != last:
            progress(f"{count} connections through the proxy are in use; they have {left:.0f} s to finish")
        last = count

    if pids:
        watch(await asyncio.to_thread(sockets.connections), grace)
    began = time.monotonic()
    was_running = await ending.end(paths, grace=grace, watch=watch)
    return was_running, held if was_running and time.monotonic() - began >= grace else []


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
