"""The rest of a big mesh, simulated: ``python -m tests.bench.changing HUB TOKEN SERVICES ADDRESS PORT PORT``.

Hosts that announce SERVICES services, and one that announces ``flip`` at ADDRESS, in turns on both PORTs: at each line
on stdin it moves to the other one and tells ``{"moved": [port, when]}``; ``when`` is the monotonic clock just before it
was said to the hub. Before that ``{"announced": …}`` tells that everything is in force.
"""

import asyncio
import itertools
import json
import sys
import time
from ipaddress import IPv4Address

from meshagent.model.address import parse_host_port
from meshagent.model.posture import Posture
from meshagent.model.service import DeclaredService, ServiceHealth, ServiceProtocol
from meshagent.protocol.announce import Announced, AnnouncedService, announcement_message
from tests.bench.agents import Agent, Progress, join

#: Services per simulated host.
_EACH = 100


async def _flip(agent: Agent, address: IPv4Address, port: int) -> float:
    """Say where ``flip`` is now; the moment before it was said."""
    agent.generation += 1
    declared = DeclaredService(name="flip", port=8080, target_port=port, protocol=ServiceProtocol.TCP)
    services = (AnnouncedService(declared, address, ServiceHealth(True)),)
    message = announcement_message(Announced(agent.generation, "boot-1", (address,), services, Posture.PERMISSIVE))
    began = time.monotonic()
    await agent.announcing.write(message)
    await agent.announcing.read()
    return began


async def main(hub_text: str, token: str, services: int, address: IPv4Address, ports: tuple[int, int]) -> None:
    """The steps of the module's docstring; ends with stdin."""
    hub = parse_host_port(hub_text)
    count = -(-services // _EACH) + 1
    agents = [Agent(n, hub, identity, Progress(0)) for n, identity in enumerate(await join(hub, token, count))]
    for agent in agents:
        agent.connect()
    moving, *others = agents
    for agent in others:
        await agent.announce([f"svc-{n}" for n in range(services)][agent.number - 1 :: len(others)])
    await _flip(moving, address, ports[0])
    _say({"announced": services})
    for port in itertools.cycle(reversed(ports)):
        if not await asyncio.to_thread(sys.stdin.readline):
            return
        _say({"moved": [port, await _flip(moving, address, port)]})


def _say(told: object) -> None:
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3], int(sys.argv[3]), IPv4Address(sys.argv[4]), (int(sys.argv[5]), int(sys.argv[6]))))
