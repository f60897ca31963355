"""Clusters, endpoints and listeners change a hundred times a second: nobody who uses them notices."""

import asyncio
import contextlib
import random

import pytest

from meshagent.model.paths import Paths
from tests.agent.envoy.side import Side, own_root
from tests.agent.relay.churn import Churn, Echoes, echoing
from tests.fakes.control_plane import FakeControlPlane
from tests.fakes.eventually import eventually

pytestmark = pytest.mark.root


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(200, id="short"),
        pytest.param(6_000, id="a minute", marks=[pytest.mark.long, pytest.mark.timeout(900)]),
    ],
)
def test_no_connection_fails_and_none_is_dropped_while_everything_changes(changes: int) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")  # noqa: T201 - pytest shows it with a failure

    async def story(paths: Paths, target: int) -> list[Echoes]:
        churn = Churn(random.Random(seed), target)
        plane = FakeControlPlane(churn.snapshot())
        async with Side(paths, plane, patience=60.0).running() as side:
            await side.ready(60)
            with contextlib.ExitStack() as stack:
                ports = [service.port for service in churn.services]
                users = [Echoes(ports), Echoes(ports), Echoes([churn.quiet], kept=True)]
                for user in users:
                    stack.enter_context(user)
                for _ in range(changes):
                    churn.change()
                    plane.publish(churn.snapshot())
                    await asyncio.sleep(0.01)  # the pace is what is tested
                await eventually(lambda: _in_use(side) == plane.snapshot, 60)
                before = [(user, user.done) for user in users]
                await eventually(lambda: all(user.done > past + 10 or user.failures for user, past in before), 60)
            assert not side.conditions.held
        return users

    with own_root() as paths, echoing() as target:
        users = asyncio.run(story(paths, target))
    assert [failure for user in users for failure in user.failures] == []


def _in_use(side: Side) -> object:
    """What Envoy has acknowledged, as the control plane says it."""
    held = side.subscriber.resources
    return {type_url: held.get(type_url) for type_url in side.plane.snapshot}
