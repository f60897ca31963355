"""Agents that lose their hub and come back: ``python -m tests.bench.returning FLEET SERVICES FIRST LAST``.

FLEET is a pickled ``tests.hub.fleets.Fleet``; this process runs its agents FIRST to LAST - 1 in one event loop, real
where they meet the hub (session, announcements, backoff, TLS). Steps are told as a line of JSON on stdout: ``back``,
the monotonic clock and the processor time (seconds) of this process at which all of them had everything, then ``lost``
when their hub was gone; and again.
"""

import asyncio
import gc
import json
import logging
import pickle
import sys
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from tests.hub.fleets import Fleet, RealAgent, serving

#: How often the agents are asked whether they are back: 500 of them take 0.2 ms.
_LOOK = 0.05


async def main(fleet: Fleet, services: int, first: int, last: int) -> None:
    """Until it is ended."""
    gc.set_threshold(100_000, 50, 1_000)  # else 500 agents pay for looking through each other's memory
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    named = enumerate(serving(len(fleet.identities), services))
    agents = [RealAgent(number, fleet, names) for number, names in named][first:last]
    running = [asyncio.create_task(agent.announcer.run()) for agent in agents]
    await _until(lambda: all(agent.announcer.state.value.connected for agent in agents))
    _say("announced")
    running += [asyncio.create_task(agent.session.run()) for agent in agents]
    while not any(task.done() for task in running):
        await _until(lambda: all(agent.complete and agent.known >= services for agent in agents))
        _say("back")
        await _until(lambda: not any(agent.connected for agent in agents))
        _say("lost")


async def _until(check: Callable[[], bool]) -> None:
    while not check():  # noqa: ASYNC110 - each agent has events of its own, but none for all
        await asyncio.sleep(_LOOK)


def _say(step: str) -> None:
    sys.stdout.write(json.dumps({step: [time.monotonic(), time.process_time()]}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(pickle.loads(Path(sys.argv[1]).read_bytes()), *map(int, sys.argv[2:])))
