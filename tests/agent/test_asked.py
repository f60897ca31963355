"""What is looked at only when the settings name it."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshagent.agent.asked import Asked
from meshagent.agent.capture import text
from meshagent.agent.capture.values import HostFacts
from meshagent.config.settings import CaptureConfig, Exclude, InboundScope
from meshagent.guard.client import GuardClient
from meshagent.guard.state import Ruleset
from meshagent.lab import Lab
from meshagent.model.marks import TABLE
from meshagent.model.policy import HostPolicy, RedirectReason
from meshagent.runtime.latest import Latest
from tests.agent.capture.stand import start_guard
from tests.fakes.eventually import eventually
from tests.fakes.units import Units, units

pytestmark = pytest.mark.root


@pytest.fixture
def made() -> Iterator[Units]:
    with units() as found:
        yield found


class Host:
    """Settings and facts; there is no guard to ask, which means nothing is known to be impossible."""

    def __init__(self, path: Path, config: CaptureConfig) -> None:
        self.config, self.facts = Latest(config), Latest(HostFacts(proxy_uid=61001))
        self.asked = Asked(self.config, Latest(HostPolicy()), self.facts, GuardClient(path / "no-guard.sock"))

    @property
    def running(self) -> set[str]:
        return {group.unit for group in self.facts.value.cgroups}


def test_units_that_start_stop_and_start_again_are_followed(tmp_path: Path, made: Units) -> None:
    web, db = made.name("web.service"), made.name("db.service")

    async def story() -> None:
        made.start("web.service")
        host = Host(tmp_path, CaptureConfig(units=(web,), exclude=Exclude(units=(db,))))
        await host.asked.start()
        assert host.running == {web}, "known before the first rules are decided"
        (before,) = host.facts.value.cgroups
        running = asyncio.create_task(host.asked.run())
        made.stop("web.service")
        await eventually(lambda: host.running == set())
        made.start("db.service")
        made.start("web.service")
        await eventually(lambda: host.running == {web, db})
        assert before not in host.facts.value.cgroups
        host.config.set(CaptureConfig(units=(web,)))
        await eventually(lambda: host.running == {web})
        host.config.set(CaptureConfig())
        await eventually(lambda: host.running == set())
        host.config.set(CaptureConfig(units=(db,)))
        await eventually(lambda: host.running == {db})
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(story())


def test_the_kernel_is_asked_through_the_guard_and_its_answer_counts(made: Units) -> None:
    made.start("web.service")
    config = CaptureConfig(units=(made.name("web.service"),), inbound=InboundScope.ALL)

    async def story(guard: GuardClient) -> None:
        facts = Latest(HostFacts(proxy_uid=61001, cgroup_usable=False, tproxy_usable=False))
        asked = Asked(Latest(config), Latest(HostPolicy()), facts, guard)
        await asked.start()
        assert facts.value.cgroup_usable and facts.value.tproxy_usable
        assert guard.state()["installed"] is False, "asking changes nothing"
        mesh: Latest[HostPolicy] = Latest(HostPolicy(redirect={3306: RedirectReason.MUTUAL_TLS}))
        facts.set(HostFacts(proxy_uid=61001, tproxy_usable=False))
        await Asked(Latest(CaptureConfig()), mesh, facts, guard).start()
        assert facts.value.tproxy_usable, "asked because the mesh wants a port redirected"
        assert not await asked._can("nonsense", "filter hook output priority 0", "tcp dport 99999 counter")
        assert await asked._can("nonsense", "filter hook output priority 0", "tcp dport 9999 counter"), "a no may pass"
        guard.apply(Ruleset(rules=f"table inet {TABLE} {{\n{text.chain('a', 'filter hook output priority 0', [])}}}\n"))
        facts.set(HostFacts(proxy_uid=61001, cgroup_usable=False, tproxy_usable=False))
        again = Asked(Latest(config), Latest(HostPolicy()), facts, guard)
        await again.start()
        assert facts.value.cgroup_usable and facts.value.tproxy_usable, "also where our table is there already"
        assert not await again._can("nonsense", "filter hook output priority 0", "tcp dport 99999 counter")

    with Lab() as lab:
        program, guard = start_guard(lab.host("a"))
        asyncio.run(story(guard))
        guard.close()
        program.stop()


def test_a_guard_that_does_not_answer_is_no_reason_to_refuse(tmp_path: Path, made: Units) -> None:
    async def story() -> None:
        made.start("web.service")
        host = Host(tmp_path, CaptureConfig(units=(made.name("web.service"),), inbound=InboundScope.ALL))
        await host.asked.start()
        assert host.facts.value.cgroup_usable
        assert host.facts.value.tproxy_usable

    asyncio.run(story())
