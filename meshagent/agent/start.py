"""An agent's start and stop, told in order.

A host that boots waits longest for its Envoy: 0.7 s from its start until it serves 1,000 services. So it is started
before most of the agent is even loaded (``first.py``), is then served what was last known (``lastknown.py``), and all
the rest is loaded (``app.py``) while it takes that in, and wired once it has asked for all. The stop takes nothing
away: Envoy, guard and rules go on until the host leaves.
"""

import asyncio
import contextlib
from typing import TYPE_CHECKING

import structlog

from meshagent import __version__
from meshagent.agent.first import First
from meshagent.machine.notify import notify
from meshagent.model.paths import Paths
from meshagent.runtime.stopping import stop_on_signals

if TYPE_CHECKING:
    from meshagent.agent.app import Agent
    from meshagent.agent.lastknown import LastKnown

log = structlog.get_logger()


async def run_agent(paths: Paths) -> None:
    """Run until SIGTERM, SIGINT or ``leave``. Raises ``MeshagentError`` when it can't start."""
    stop = stop_on_signals()
    async with contextlib.AsyncExitStack() as down:
        first = First(paths)
        await first.start(down)
        last_known = (await asyncio.to_thread(_load_last_known))(first)
        await last_known.start(down)
        agent_class, _ = await asyncio.gather(asyncio.to_thread(_load_agent), last_known.read_ahead())
        await last_known.fed()
        agent = agent_class(first, last_known, stop)
        await agent.start(down)
        notify("READY=1")
        log.info("agent started", host=first.enrolment.host_name, version=__version__)
        await stop.wait()
        notify("STOPPING=1")
        log.info("agent stopping; proxy, guard and rules go on")


# In threads: the loop meanwhile starts Envoy and serves it.


def _load_last_known() -> type["LastKnown"]:
    from meshagent.agent.lastknown import LastKnown

    return LastKnown


def _load_agent() -> type["Agent"]:
    from meshagent.agent.app import Agent

    return Agent
