"""The kernel follows what is wanted, over failures and restarts of the guard.

The guard runs in the namespace the tests run in, which has nothing but loopback.
"""

import asyncio
import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from meshagent.agent.capture.controller import CaptureController, CaptureStatus, Inputs
from meshagent.agent.capture.verify import Sync
from meshagent.config.settings import CaptureConfig, Ipv6Mode, OutboundScope
from meshagent.guard.client import GuardClient, GuardUnreachableError, command
from meshagent.lab.waiting import wait_until
from meshagent.machine import netlink
from meshagent.model.doors import Door
from meshagent.model.posture import Posture
from meshagent.runtime.latest import Latest
from tests.agent.capture.builders import declared, host_facts, pair

pytestmark = pytest.mark.root


class Conditions:
    """Remembers what is wrong now."""

    def __init__(self) -> None:
        self.now: dict[str, str] = {}

    def set(self, code: str, text: str, key: str = "") -> None:
        self.now[code] = text

    def clear(self, code: str, key: str = "") -> None:
        self.now.pop(code, None)


@dataclass
class Running:
    """A controller that runs, with its inputs and its guard."""

    controller: CaptureController
    inputs: Inputs
    conditions: Conditions
    guard: GuardClient
    root: Path
    process: subprocess.Popen[bytes]

    async def start_guard(self) -> None:
        argv = command(self.root)
        self.process = await asyncio.to_thread(subprocess.Popen, argv, stderr=subprocess.DEVNULL)
        await self.until(self._guard_answers)  # as the agent does: a second start meanwhile would race with the first

    def _guard_answers(self) -> bool:
        with contextlib.closing(GuardClient(self.root / "run/meshagent/guard.sock")) as client:
            return bool(client.state())

    async def status(self, wanted: Callable[[CaptureStatus], bool]) -> CaptureStatus:
        """Wait until the status is as wanted."""
        async with asyncio.timeout(30):
            async for status in self.controller.status.watch():
                if wanted(status):
                    return status
        raise AssertionError

    async def until(self, condition: Callable[[], object]) -> None:
        await asyncio.to_thread(wait_until, condition, 8)


def ruleset() -> str:
    return subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout


@asynccontextmanager
async def running(posture: Posture = Posture.PERMISSIVE, *, guard: bool = True) -> AsyncIterator[Running]:
    root = Path(tempfile.mkdtemp(prefix="ma-", dir="/run"))
    client = GuardClient(root / "run/meshagent/guard.sock")
    inputs = Inputs(Latest(host_facts()), Latest(posture))
    conditions = Conditions()
    made = Running(None, inputs, conditions, client, root, None)  # type: ignore[arg-type]
    made.controller = CaptureController(inputs, client, conditions, made.start_guard if guard else None)
    task = asyncio.create_task(made.controller.run())
    try:
        yield made
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        with contextlib.suppress(GuardUnreachableError):
            client.remove(anchor=True)
            client.quit()
            made.process.wait()
        netlink.remove_ours()
        client.close()
        shutil.rmtree(root)


def scenario(story: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(story())


def test_it_starts_a_guard_applies_and_follows_every_input() -> None:
    async def story() -> None:
        async with running() as host:
            status = await host.status(lambda status: status.in_sync)
            assert status.active and status.owned and not host.conditions.now

            host.inputs.mesh.set(frozenset({pair("240.240.0.7:80"), pair("10.0.0.9:80")}))
            status = await host.status(lambda status: bool(status.refused))
            assert [claim.code for claim in status.refused] == ["hub"]
            assert "240.240.0.7 . 80" in ruleset()

            host.inputs.services.set((declared("web", 8080),))
            assert (await host.status(lambda status: bool(status.ports))).ports == (8080,)
            host.inputs.posture.set(Posture.STRICT)
            status = await host.status(lambda status: bool(status.strict_ports))
            assert status.owned, "under either policy"
            assert await host.controller.verify() is Sync.EQUAL

    scenario(story)


def test_who_watches_does_so_before_anything_is_captured() -> None:
    async def story() -> None:
        async with running(Posture.OBSERVE) as host:
            await host.status(lambda status: status.in_sync)
            there: list[tuple[bool, bool]] = []
            host.controller.arm = lambda state, fail_open: there.append(("meshagent {" in ruleset(), fail_open))
            host.inputs.posture.set(Posture.PERMISSIVE)
            await host.status(lambda status: status.active)
            assert there == [(False, True)]

    scenario(story)


def test_leaving_takes_everything_out_of_the_kernel() -> None:
    async def story() -> None:
        async with running() as host:
            await host.status(lambda status: status.in_sync)
            assert netlink.our_routes() and netlink.our_rules()
            await host.controller.remove()
            assert ruleset() == ""
            assert not netlink.our_routes() and not netlink.our_rules()

    scenario(story)


def test_observe_on_a_fresh_host_puts_nothing_in_the_kernel() -> None:
    async def story() -> None:
        async with running(Posture.OBSERVE) as host:
            await host.status(lambda status: status.in_sync)
            assert ruleset() == "" and not netlink.our_routes()

    scenario(story)


def test_suspended_capture_redirects_nothing_until_it_is_resumed() -> None:
    async def story() -> None:
        async with running() as host:
            await host.status(lambda status: status.active)
            host.inputs.suspended.set(True)
            await host.status(lambda status: not status.active)
            assert "redirect to :15001" not in ruleset() and "meshagent_anchor" in ruleset()
            host.inputs.suspended.set(False)
            await host.status(lambda status: status.active)
            assert "redirect to :15001" in ruleset()

    scenario(story)


def test_a_killed_guard_is_started_again_and_gets_the_rules_back() -> None:
    async def story() -> None:
        async with running() as host:
            await host.status(lambda status: status.in_sync)
            first = host.guard.state()["pid"]
            host.process.kill()
            host.process.wait()
            await host.until(lambda: host.guard.state()["pid"] != first)
            await host.until(lambda: "redirect to :15001" in ruleset())
            await host.until(lambda: "guard-down" not in host.conditions.now)

    scenario(story)


def test_without_a_guard_the_condition_says_so_and_nothing_is_pretended() -> None:
    async def story() -> None:
        async with running(guard=False) as host:
            status = await host.status(lambda status: bool(status.error))
            assert not status.in_sync
            assert "doesn't answer" in host.conditions.now["guard-down"]
            await host.start_guard()
            await host.status(lambda status: status.in_sync)
            assert not host.conditions.now

    scenario(story)


def test_a_setting_that_can_not_be_honoured_keeps_the_last_good_rules() -> None:
    async def story() -> None:
        async with running() as host:
            await host.status(lambda status: status.in_sync)
            before = ruleset()
            host.inputs.facts.set(replace(host.inputs.facts.value, ipv6_usable=False))
            host.inputs.config.set(CaptureConfig(ipv6=Ipv6Mode.CAPTURE))
            await host.until(lambda: "no IPv6 loopback" in host.conditions.now.get("capture-failed", ""))
            assert ruleset() == before
            host.inputs.config.set(CaptureConfig())
            await host.until(lambda: not host.conditions.now)

    scenario(story)


def test_what_the_proxy_can_not_do_yet_is_told_and_done_as_soon_as_it_can() -> None:
    async def story() -> None:
        async with running(Posture.OUTBOUND) as host:
            host.inputs.config.set(CaptureConfig(outbound=OutboundScope.ALL))
            await host.until(lambda: "capture.outbound: all" in host.conditions.now.get("capture-waiting", ""))
            assert "chain everything" not in ruleset()
            host.inputs.doors.set(frozenset({(Door.PASSTHROUGH, 4), (Door.PASSTHROUGH, 6)}))
            await host.until(lambda: not host.conditions.now and "chain everything" in ruleset())

    scenario(story)


def test_an_unconfirmed_change_goes_back_to_observe_stays_there_and_says_why() -> None:
    async def story() -> None:
        async with running(Posture.OBSERVE) as host:
            await host.status(lambda status: status.in_sync)
            await host.controller.begin_trial(0.5, {"posture": "permissive"})
            host.inputs.posture.set(Posture.PERMISSIVE)
            status = await host.status(lambda status: status.active)
            assert status.pending_confirm_until

            await host.status(lambda status: bool(status.rolled_back) and not status.active)
            assert "not confirmed" in host.conditions.now["rolled-back"]
            host.inputs.mesh.set(frozenset({pair("240.240.0.7:80")}))
            await host.until(lambda: host.inputs.mesh.version == 1)
            assert "redirect to :15001" not in ruleset()

            await host.controller.acknowledge()
            assert await host.controller.apply_now()
            await host.status(lambda status: status.active)
            assert "redirect to :15001" in ruleset() and not host.conditions.now

    scenario(story)


def test_a_trial_that_is_over_before_its_change_is_applied_stays_undone() -> None:
    """As on a host so busy, or with an agent that was stopped so long, that the time ran out on the way."""

    async def story() -> None:
        async with running(Posture.OBSERVE) as host:
            await host.status(lambda status: status.in_sync)
            await host.controller.acknowledge()
            await host.controller.begin_trial(0.1, {"posture": "permissive"})
            await host.until(lambda: bool(host.guard.state()["rolled_back"]))
            host.inputs.posture.set(Posture.PERMISSIVE)
            await host.controller.apply_now()
            assert "redirect to :15001" not in ruleset()
            assert "not confirmed" in host.conditions.now["rolled-back"]

    scenario(story)


def test_a_confirmed_change_stays() -> None:
    async def story() -> None:
        async with running(Posture.OUTBOUND) as host:
            await host.status(lambda status: status.in_sync)
            await host.controller.begin_trial(0.4, {})
            host.inputs.posture.set(Posture.PERMISSIVE)
            await host.status(lambda status: status.active)
            assert await host.controller.confirm()
            await asyncio.sleep(0.5)
            assert "redirect to :15001" in ruleset() and host.guard.state()["rolled_back"] is None

    scenario(story)


def test_a_bypass_is_shown_with_the_time_it_began() -> None:
    async def story() -> None:
        async with running() as host:
            await host.status(lambda status: status.in_sync)
            host.guard.bypass("proxy", "test")
            status = await host.status(lambda status: status.bypassed_since is not None)
            assert status.bypassed_since

    scenario(story)


def test_facts_that_change_are_followed() -> None:
    """An address that this host got since is direct from then on."""

    async def story() -> None:
        async with running() as host:
            host.inputs.mesh.set(frozenset({pair("10.1.2.3:80")}))
            await host.until(lambda: "10.1.2.3 . 80" in ruleset())
            facts = host.inputs.facts.value
            host.inputs.facts.set(replace(facts, own_addresses=facts.own_addresses | {pair("10.1.2.3:80").ip}))
            await host.until(lambda: "10.1.2.3 . 80" not in ruleset())

    scenario(story)


def test_routes_and_rules_that_somebody_removes_come_back() -> None:
    async def story() -> None:
        async with running() as host:
            await host.status(lambda status: status.in_sync)
            routes, rules = set(netlink.our_routes()), set(netlink.our_rules())
            for command_line in (
                "ip route del 240.240.0.0/16 dev lo",
                "ip rule del priority 28001",
                "ip -6 route flush table 28001",
            ):
                subprocess.run(command_line.split(), check=True)  # noqa: ASYNC221 done in a millisecond
            await host.until(lambda: (set(netlink.our_routes()), set(netlink.our_rules())) == (routes, rules))

    scenario(story)


def test_a_program_that_insists_on_being_before_our_legacy_rules_is_told_about() -> None:
    insist = ["iptables-legacy", "-w", "5", "-I", "OUTPUT", "-d", "10.5.5.5", "-j", "ACCEPT"]

    async def story() -> None:
        async with running() as host:
            host.inputs.facts.set(host_facts(nft_usable=False, iptables_usable=True))
            await host.status(lambda status: status.in_sync and status.backend == "iptables")
            for moves in range(4):
                await asyncio.to_thread(subprocess.run, insist, check=True)
                await host.until(lambda moves=moves: host.guard.state()["heals"] > moves)  # type: ignore[misc]
            await host.until(lambda: "capture-contested" in host.conditions.now)

    try:
        scenario(story)
    finally:
        subprocess.run(["iptables-legacy", "-w", "5", "-F", "OUTPUT"], check=True)
