"""Many agents at one hub: all back soon after its restart, memory that doesn't grow, changes that reach everybody.

Agents are real where they meet the hub (session, announcements, backoff, a connection for both), in this process;
the hub is one of its own. Times are the hub's own processor time, which a busy machine doesn't change.
"""

import asyncio
import random
import time
from pathlib import Path

import pytest

from tests.fakes.eventually import eventually
from tests.hub.fleets import Fleet, RealAgent, enrolled
from tests.ports import free_port

#: What the hub may compute for each agent that comes back. Seen: 7 ms with 50 services, 21 ms with 1,000 on two cores
#: with fifteen busy processes, where the same code takes several times as long as alone.
SECONDS_PER_AGENT = 0.045


def _agents(fleet: Fleet, services: int) -> list[RealAgent]:
    """The first quarter of them serves."""
    count = len(fleet.identities)
    owners = max(1, count // 4)
    names = [f"svc-{n}" for n in range(services)]
    return [RealAgent(n, fleet, tuple(names[n::owners]) if n < owners else ()) for n in range(count)]


async def _all_back(agents: list[RealAgent], services: int) -> None:
    await eventually(lambda: all(agent.connected and agent.known >= services for agent in agents), 200)


async def _change(agents: list[RealAgent], number: int) -> None:
    """One service falls sick and gets well; everybody hears both."""
    owners = [agent for agent in agents if agent.services]
    agent = owners[number % len(owners)]
    sick = agent.services[number % len(agent.services)]
    name = f"outbound|8080||{sick}.default.mesh.internal"
    for said in (sick, ""):
        began = time.monotonic()
        agent.say(said)
        await eventually(lambda: all(each.heard.get(name, 0) >= began for each in agents), 60)  # noqa: B023


async def _story(fleet: Fleet, services: int, restarts: int, changes: int) -> None:
    agents = _agents(fleet, services)
    works = []
    for number in range(restarts + 1):
        with fleet.running() as hub:
            started = fleet.processor_time(hub)
            if not works:
                works = [work for agent in agents for work in agent.start()]
            began = time.monotonic()
            await _all_back(agents, services)
            took, computed = time.monotonic() - began, fleet.processor_time(hub) - started
            print(f"{len(agents)} agents back: {took:.1f} s, hub computed {computed:.1f} s")  # noqa: T201
            if number:
                assert computed < max(1.5, SECONDS_PER_AGENT * len(agents))
            await _stays_small(fleet, hub, agents, changes)
        await eventually(lambda: not any(agent.connected for agent in agents), 30)
    for work in works:
        work.cancel()
    await asyncio.gather(*works, return_exceptions=True)


async def _stays_small(fleet: Fleet, hub: object, agents: list[RealAgent], changes: int) -> None:
    for number in range(changes // 3):
        await _change(agents, number)
    before = fleet.memory(hub)  # type: ignore[arg-type]
    for number in range(changes):
        await _change(agents, random.randrange(10_000) if number % 2 else number)
    after = fleet.memory(hub)  # type: ignore[arg-type]
    print(f"hub {before:.0f} MB, after {changes} changes {after:.0f} MB")  # noqa: T201
    assert after - before < max(6.0, 0.1 * before)


def test_agents_are_back_after_a_restart_of_the_hub_and_its_memory_does_not_grow(tmp_path: Path) -> None:
    async def story() -> None:
        await _story(await enrolled(tmp_path, 40, free_port()), services=50, restarts=1, changes=15)

    asyncio.run(story())


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_thousand_agents_are_back_after_a_restart_of_the_hub(tmp_path: Path) -> None:
    async def story() -> None:
        await _story(await enrolled(tmp_path, 1000, free_port()), services=1000, restarts=1, changes=30)

    asyncio.run(story())
