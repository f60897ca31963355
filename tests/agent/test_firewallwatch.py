"""A firewall that keeps mesh peers out shows soon after somebody made it so, and goes by itself.

Rules are made in the namespace the tests run in, which has nothing but loopback.
"""

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Iterator

import pytest

from meshagent.agent.firewallwatch import CONDITION, FirewallWatch, read_firewalls
from meshagent.agent.health.tracker import Tracker
from meshagent.agent.judge.firewalls import Firewall
from meshagent.lab.waiting import wait_until
from meshagent.runtime.clock import SystemClock

pytestmark = pytest.mark.root


def nft(text: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True)


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    yield
    nft("flush ruleset")


class Running:
    """A watch that runs; ``looks`` counts."""

    def __init__(self) -> None:
        self.serves, self.looks, self.tracker = True, 0, Tracker(SystemClock())

    def look(self) -> tuple[Firewall, ...]:
        self.looks += 1
        return read_firewalls()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        watch = FirewallWatch(lambda: self.serves, self.tracker, self.look, first=0, least=0.05)
        task = asyncio.create_task(watch.run())
        try:
            await self.until(lambda: self.looks)
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def until(self, condition: object) -> None:
        await asyncio.to_thread(wait_until, condition, 30)  # type: ignore[arg-type]

    def told(self) -> list[str]:
        return [condition.text for condition in self.tracker.conditions() if condition.code == CONDITION]


THEIRS = """
add table inet theirs
add chain inet theirs in { type filter hook input priority 0; policy drop; }
add rule inet theirs in tcp dport 22 accept
"""


def test_a_firewall_that_keeps_peers_out_is_told_with_its_line_until_it_lets_them_in() -> None:
    async def story() -> None:
        watch = Running()
        async with watch.running():
            assert watch.told() == []
            nft(THEIRS)
            await watch.until(watch.told)
            assert "nft table inet theirs refuses port 15008; let peers in with: nft insert rule" in watch.told()[0]
            nft("insert rule inet theirs in tcp dport 15008 accept")
            await watch.until(lambda: not watch.told())

    asyncio.run(story())


def test_our_own_changes_are_no_reason_to_look_and_who_serves_nobody_has_no_peers_to_keep_out() -> None:
    async def story() -> None:
        watch = Running()
        async with watch.running():
            before = watch.looks
            for number in range(20):
                nft(f"add table inet meshagent\nadd chain inet meshagent c{number}")
            nft("add table inet theirs")
            await watch.until(lambda: watch.looks > before)
            assert watch.looks <= before + 2, "one look for theirs, none for ours"
            watch.serves = False
            nft(THEIRS)
            await asyncio.to_thread(nft, "add table inet another")
        assert watch.told() == []

    asyncio.run(story())
