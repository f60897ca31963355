"""A few changes are published one by one, a storm of them together."""

import asyncio

from meshagent.hub.registry.publishing import BURST, COALESCE, Publishing, due, spent
from meshagent.hub.state import MeshState
from meshagent.runtime.latest import Latest
from tests.fakes.eventually import eventually
from tests.hub.hosts import on_loop


def built_at(seconds: float, takes: float) -> list[float]:
    """When states are built while something changes all the time."""
    found, until, now = [], float("-inf"), 100.0
    while (now := due(now, until)) < 100.0 + seconds:
        found.append(now)
        until = spent(until, now, now + takes)
        now += takes
    return found


def test_five_changes_one_after_the_other_wait_for_nobody() -> None:
    assert [round(at - 100.0, 6) for at in built_at(0.02, 0.001)][:6] == [0, 0.001, 0.002, 0.003, 0.004, 0.005]


def test_a_storm_of_changes_costs_at_most_fifty_states_a_second_and_a_fifth_of_a_core() -> None:
    assert len(built_at(10.0, 0.001)) <= 10.0 / COALESCE + BURST / COALESCE + 1
    assert len(built_at(10.0, 0.1)) * 0.1 <= 10.0 / 5 + 0.1


@on_loop
async def test_changes_that_come_together_are_one_state_and_what_may_not_wait_is_published_at_once() -> None:
    state: Latest[MeshState] = Latest(MeshState())
    publishing = Publishing(state, lambda: MeshState(zone=f"z{state.version + 1}"))
    for _ in range(30):
        publishing.soon()
    await eventually(lambda: state.version)
    await asyncio.sleep(0)
    assert state.version == 1
    for number in range(2, 30):
        publishing.now()
        assert state.value.zone == f"z{number}"
