"""Connections through the proxy that outlast the drain: who they belong to, so that closing them is never silent."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from meshagent.agent.envoy import ending
from meshagent.agent.envoy.record import Records
from meshagent.machine.sockets import Connection
from meshagent.model.paths import Paths
from meshagent.model.ports import HBONE, OUTBOUND

#: While nothing changes, how many seconds pass between two words to whoever waits.
_SAY_AGAIN = 5.0
#: Who waits longer than this waits for the end of the last connection, whenever that is.
_LONG = 86400.0


@dataclass(frozen=True, slots=True)
class Drained:
    """How a drain went. ``ran``: there was a proxy; ``seconds``: what it took, with the end of the proxy;
    ``connections``: in use when it began; ``closed``: a line for each program or peer that was cut."""

    ran: bool
    seconds: float
    connections: int
    closed: list[str]


async def end_proxy(paths: Paths, grace: float, progress: Callable[[str], None]) -> Drained:
    """End the proxy after at most ``grace`` seconds; ``progress`` hears how many connections are still in use."""
    record = Records(paths).load()
    watch = _Watch([handle.pid for handle in record.handles()] if record is not None else [], progress)
    if watch.pids and (found := await ending.connected()) is not None:
        watch(found, grace)
    connections, began = watch.count, time.monotonic()
    ran = await ending.end(paths, grace=grace, watch=watch)
    took = time.monotonic() - began
    return Drained(ran, took, connections, watch.held if ran and took >= grace else [])


class _Watch:
    """Hears of the connections once a second and passes on what is news: a change, or that it goes on."""

    def __init__(self, pids: Sequence[int], progress: Callable[[str], None]) -> None:
        self.pids, self._progress = pids, progress
        self.count = 0
        self.held: list[str] = []
        self._said_at = 0.0

    def __call__(self, found: tuple[Connection, ...], left: float) -> None:
        before, now = self.count, time.monotonic()
        self.count = sum(ending.in_use(found, pid) for pid in self.pids)
        self.held = [line for pid in self.pids for line in describe(found, pid)] if self.count else []
        if self.count and (self.count != before or now - self._said_at >= _SAY_AGAIN):
            self._said_at = now
            many = "1 connection" if self.count == 1 else f"{self.count} connections"
            limit = "until the last one ends" if left > _LONG else f"for at most {left:.0f} s more"
            self._progress(f"{many} through the proxy in use; waiting {limit}")


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
