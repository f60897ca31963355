"""What is told of ports while the proxy can't bind them, and that it ends with its reason."""

import asyncio
from collections.abc import Mapping

from meshagent.agent.envoy.state import ProxyState
from meshagent.agent.health.tracker import Tracker
from meshagent.agent.ports import Taken
from meshagent.agent.portwatch import PortWatch
from meshagent.runtime.clock import SystemClock
from meshagent.runtime.latest import Latest
from tests.fakes.eventually import eventually


def test_what_envoy_says_of_a_port_is_told_no_longer_once_it_is_bound() -> None:
    """Nobody is seen on the port any more, Envoy still complains: it binds right after that look."""

    async def story() -> None:
        tracker, bound = Tracker(SystemClock()), 0
        taken: Latest[tuple[Taken, ...]] = Latest(())
        unbound: Latest[Mapping[str, str]] = Latest({"outbound": "Address already in use"})

        async def bind_again() -> None:
            nonlocal bound
            bound += 1
            assert tracker._reports, "told meanwhile"
            unbound.set({})

        watch = PortWatch(0, tracker, taken, Latest(ProxyState(ready=True)), unbound, Latest(True), bind_again)
        running = asyncio.create_task(watch.run())
        await eventually(lambda: bound == 1)
        await eventually(lambda: not tracker._reports)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(story())
