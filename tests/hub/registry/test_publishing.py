"""A few changes are published one by one, a storm of them together."""

import asyncio

from meshagent.hub.registry.publishing import BURST, COALESCE, Publishing
from meshagent.hub.state import MeshState
from meshagent.runtime.latest import Latest
from tests.fakes.eventually import eventually
from tests.hub.hosts import on_loop


class Counted:
    """A state that is another one each time it is built."""

    def __init__(self) -> None:
        self.built = 0
        self.state: Latest[MeshState] = Latest(MeshState())
        self.publishing = Publishing(self.state, self._build)

    def _build(self) -> MeshState:
        self.built += 1
        return MeshState(zone=f"z{self.built}")


@on_loop
async def test_changes_one_after_the_other_wait_for_nobody_until_the_budget_is_spent() -> None:
    counted = Counted()
    turns = 0
    while counted.built < round(BURST / COALESCE):
        counted.publishing.soon()
        await asyncio.sleep(0)
        turns += 1
    assert turns < 50  # turns of the loop, not milliseconds


@on_loop
async def test_a_storm_of_changes_costs_as_many_states_as_its_time_allows_and_ends_with_the_newest() -> None:
    counted = Counted()
    loop = asyncio.get_running_loop()
    began = loop.time()
    while loop.time() < began + 0.5:
        counted.publishing.soon()
        await asyncio.sleep(0)
    most = (loop.time() - began + BURST) / COALESCE + 1
    assert 1 < counted.built <= most
    said = counted.built
    counted.publishing.soon()
    await eventually(lambda: counted.built > said)
    assert counted.state.value.zone == f"z{counted.built}"


@on_loop
async def test_what_may_not_wait_is_published_at_once_whatever_the_budget() -> None:
    counted = Counted()
    for number in range(1, 30):
        counted.publishing.now()
        assert counted.state.value.zone == f"z{number}"
