"""Whether this host's own firewall lets mesh peers in, while the agent runs: looked at when somebody changes rules.

Rules of nftables (iptables-nft's, too) are announced by the kernel; legacy iptables announces nothing, so once a minute
is looked anyway. A look starts nft and reads what it prints (0.1 s), so there is one in ten seconds at most.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Sequence

from meshagent.agent.health.tracker import Tracker
from meshagent.agent.judge.firewalls import BLOCKS, OPEN, Firewall, judge_firewalls
from meshagent.guard.rulewatch import Announcements
from meshagent.machine import firewalls
from meshagent.model.marks import ANCHOR_TABLE, TABLE
from meshagent.model.ports import HBONE

CONDITION = "firewall-blocks"
#: An agent that starts has better things to do.
_FIRST_SECONDS = 5.0
_LOOK_SECONDS = 60.0
_LEAST_SECONDS = 10.0

_NETLINK_NETFILTER, _NFNLGRP_NFTABLES = 12, 7


def read_firewalls(ports: Sequence[int] = (HBONE,)) -> tuple[Firewall, ...]:
    """What is there now, judged for the first port; of the others only what keeps somebody out. Blocks for 0.1 s."""
    found = firewalls.read()
    judged = (
        judge_firewalls(found.nft, found.saved, found.managers, found.zone, found.flushes, port) for port in ports
    )
    return tuple(each for one in judged for each in one if each.port == ports[0] or each.verdict != OPEN)


class FirewallWatch:
    """``serves``: whether peers have a reason to come in at all. ``run`` reports until cancelled."""

    def __init__(
        self,
        serves: Callable[[], bool],
        tracker: Tracker,
        look: Callable[[], Sequence[Firewall]] = read_firewalls,
        *,
        first: float = _FIRST_SECONDS,
        least: float = _LEAST_SECONDS,
    ) -> None:
        self._serves, self._tracker, self._read, self._first, self._least = serves, tracker, look, first, least
        self._changed = asyncio.Event()
        self._announced = Announcements(TABLE, ANCHOR_TABLE)

    async def run(self) -> None:
        """Look soon after a change by others, and once a minute."""
        with contextlib.ExitStack() as stack:
            if (opened := _announcing()) is not None:
                stack.enter_context(opened)
                loop = asyncio.get_running_loop()
                loop.add_reader(opened.fileno(), self._hear, opened)
                stack.callback(loop.remove_reader, opened.fileno())
            await asyncio.sleep(self._first)
            while True:
                self._changed.clear()
                await self.look()
                await asyncio.sleep(self._least)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_SECONDS - self._least):
                        await self._changed.wait()

    async def look(self) -> None:
        """One look now."""
        found = await asyncio.to_thread(self._read) if self._serves() else ()
        blocking = [each for each in found if each.verdict == BLOCKS]
        for each in blocking:
            text = f"{each.name} refuses port {HBONE}; let peers in with: {each.allow}"
            self._tracker.set(CONDITION, text, each.name)
        self._tracker.clear_others(CONDITION, {each.name for each in blocking})

    def _hear(self, opened: socket.socket) -> None:
        """Our own changes, which touch our tables, are no news."""
        try:
            while True:
                for done in self._announced.feed(opened.recv(1 << 18)):
                    if not done.tables:
                        self._changed.set()
        except BlockingIOError:
            return
        except OSError:  # ENOBUFS: announcements were lost
            self._announced.lost()
            self._changed.set()


def _announcing() -> socket.socket | None:
    """None where the kernel has no nf_tables: then there are only the looks in between."""
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    try:
        opened = socket.socket(socket.AF_NETLINK, kind, _NETLINK_NETFILTER)
    except OSError:
        return None
    try:
        opened.bind((0, 1 << (_NFNLGRP_NFTABLES - 1)))
    except OSError:
        opened.close()
        return None
    return opened
