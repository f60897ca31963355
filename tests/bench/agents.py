"""Simulated agents, many in one process: ``python -m tests.bench.agents HUB TOKEN COUNT SERVICES CHANGES``.

Each is enrolled and has keys of its own, keeps an announcement stream and a delta-ADS stream over its own mutual-TLS
connection, follows clusters to their endpoints, and decodes every resource before it ACKs, as an agent in front of an
Envoy does. The first quarter of them announces the services. Steps wait for a line on stdin and are told as a line of
JSON on stdout: ``joined``, ``announced``, ``synced`` (seconds), ``changes`` (milliseconds each, from announcing that
an endpoint is unhealthy until the last agent has sent its ACK; getting well again follows and isn't counted).
"""

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Any

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.config.listener.v3.listener_pb2 import Listener

from meshagent.model.address import HostPort, parse_host_port
from meshagent.model.identity import Identity
from meshagent.model.posture import Posture
from meshagent.model.service import DeclaredService, ServiceHealth, ServiceProtocol
from meshagent.protocol.announce import Announced, AnnouncedService, announcement_message
from meshagent.protocol.enrol import parse_token
from meshagent.protocol.node import NodeId, Workload, build_node
from meshagent.protocol.pb.istio_nds_pb2 import NameTable
from meshagent.protocol.pb.meshagent_v1_pb2 import HostPolicy
from meshagent.protocol.subscriber import Subscriber
from meshagent.protocol.types import CDS, EDS, HOST_POLICY, LDS, NDS
from meshagent.transport.channel import announce_stream, delta_ads_stream, enroll_call, hub_channel
from meshagent.transport.tls import look_at_hub
from tests.hub.hosts import Newcomer

_MESSAGES: dict[str, Any] = {
    CDS: Cluster,
    EDS: ClusterLoadAssignment,
    LDS: Listener,
    NDS: NameTable,
    HOST_POLICY: HostPolicy,
}
#: The hub lets one source try 20 enrolments at once: agents of a fleet come from many addresses, so do these.
_PER_SOURCE = 15


@dataclass
class Progress:
    """What the agents have done together; ``acked`` of them have ACKed the latest change of service ``watched``."""

    services: int
    synced: int = 0
    acked: int = 0
    watched: str = ""
    moved: asyncio.Event = field(default_factory=asyncio.Event)

    async def until(self, condition: Any) -> None:
        while not condition():
            self.moved.clear()
            await self.moved.wait()


@dataclass
class Agent:
    """One simulated agent."""

    number: int
    hub: HostPort
    identity: Identity
    progress: Progress
    channel: Any = None
    announcing: Any = None
    generation: int = 0

    @property
    def _address(self) -> IPv4Address:
        return IPv4Address("10.200.0.1") + self.number

    def connect(self) -> None:
        name = f"hub.{self.identity.spiffe_id.trust_domain}"
        self.channel = hub_channel(
            self.hub, roots_pem=self.identity.bundle_pem, server_name=name, identity=self.identity
        )
        self.announcing = announce_stream(self.channel)

    async def announce(self, names: list[str], sick: str = "") -> None:
        """Say what is served here; returns when the hub has answered."""
        self.generation += 1
        services = tuple(_service(name, name != sick, self._address) for name in names)
        message = Announced(self.generation, "boot-1", (self._address,), services, Posture.PERMISSIVE)
        await self.announcing.write(announcement_message(message))
        await self.announcing.read()

    async def follow(self) -> None:
        """The ADS stream, for good."""
        node_id = NodeId(self._address, f"agent-{self.number}", "default")
        node = build_node(Workload(node_id, self.identity.spiffe_id.service_account, (self._address,)))
        subscriber = Subscriber(node, (CDS, LDS, NDS, HOST_POLICY), {EDS: ()})
        stream = delta_ads_stream(self.channel)
        for request in subscriber.open():
            await stream.write(request)
        synced = False
        while True:
            received = subscriber.receive(await stream.read())
            decoded = [_MESSAGES[received.type_url].FromString(e.body) for e in received.changed.values()]
            requests = subscriber.accept(received)
            if received.type_url == CDS:
                requests += subscriber.subscribe(EDS, [c.name for c in decoded if c.type == Cluster.EDS])
            for request in requests:
                await stream.write(request)
            if received.type_url == EDS:
                synced = self._count(subscriber, synced, received.changed)

    def _count(self, subscriber: Subscriber, synced: bool, changed: Any) -> bool:
        progress = self.progress
        complete = synced or len(subscriber.resources[EDS]) >= progress.services
        progress.synced += complete and not synced
        progress.acked += any(name.split("||")[1].startswith(progress.watched + ".") for name in changed)
        progress.moved.set()
        return complete


def _service(name: str, healthy: bool, address: IPv4Address) -> AnnouncedService:
    declared = DeclaredService(name=name, port=8080, target_port=8080, protocol=ServiceProtocol.TCP)
    return AnnouncedService(declared, address, ServiceHealth(healthy, "" if healthy else "refused"))


async def join(hub: HostPort, token_text: str, count: int) -> list[Identity]:
    """Enrol ``count`` hosts with one token, a few at a time, from changing source addresses."""
    token = parse_token(token_text)
    pinned = await look_at_hub(hub, token.ca_hash)

    async def one(number: int) -> Identity:
        newcomer = Newcomer(f"agent-{number}")
        channel = hub_channel(hub, roots_pem=pinned.root_pem, server_name=pinned.server_name)
        async with channel:
            return newcomer.identity(await enroll_call(channel, newcomer.request(token)))

    joined: list[Identity] = []
    for start in range(0, count, _PER_SOURCE):
        _use_source(hub.host, start // _PER_SOURCE)
        joined += await asyncio.gather(*(one(n) for n in range(start, min(count, start + _PER_SOURCE))))
    return joined


def _use_source(hub: str, number: int) -> None:
    """Make the next connections to the hub come from another address of this (lab) host."""
    source = IPv4Address(hub) + 256 * (number + 1)
    subprocess.run(["ip", "addr", "add", f"{source}/16", "dev", "eth0"], check=True)
    subprocess.run(["ip", "route", "replace", f"{hub}/32", "dev", "eth0", "src", str(source)], check=True)


async def main(hub_text: str, token: str, count: int, services: int, changes: int) -> None:
    """The steps of the module's docstring."""
    hub, progress = parse_host_port(hub_text), Progress(services)
    agents = [Agent(n, hub, identity, progress) for n, identity in enumerate(await join(hub, token, count))]
    await _say("joined", len(agents))
    names = [f"svc-{n}" for n in range(services)]
    owners = agents[: max(1, count // 4)]
    serving = {agent.number: names[agent.number :: len(owners)] for agent in owners}
    for agent in owners:
        agent.connect()
        await agent.announce(serving[agent.number])
    await _say("announced", len(names))

    began = time.monotonic()
    for agent in agents[len(owners) :]:
        agent.connect()
        await agent.announce([])
    following = [asyncio.create_task(agent.follow()) for agent in agents]
    await _or_failure(progress.until(lambda: progress.synced == count), following)
    await _say("synced", time.monotonic() - began)

    taken = [await _or_failure(_change(agents, owners, serving, progress, n), following) for n in range(changes)]
    await _say("changes", taken)


async def _change(
    agents: list[Agent], owners: list[Agent], serving: dict[int, list[str]], progress: Progress, number: int
) -> float:
    """One endpoint turns unhealthy, everybody ACKs (milliseconds, returned); it gets well, everybody ACKs."""
    agent = owners[number % len(owners)]
    progress.watched = serving[agent.number][number // len(owners) % len(serving[agent.number])]
    taken = []
    for sick in (progress.watched, ""):
        progress.acked = 0
        began = time.monotonic()
        await agent.announce(serving[agent.number], sick)
        await progress.until(lambda: progress.acked >= len(agents))
        taken.append((time.monotonic() - began) * 1e3)
        await asyncio.sleep(0.05)
    return taken[0]


async def _or_failure(work: Any, following: list[asyncio.Task[None]]) -> Any:
    """The result of ``work``, unless a stream ends before: then its error."""
    task = asyncio.ensure_future(work)
    done, _ = await asyncio.wait({task, *following}, return_when=asyncio.FIRST_COMPLETED)
    if task not in done:
        raise RuntimeError("a simulated agent's stream ended") from next(iter(done)).exception()
    return task.result()


async def _say(step: str, value: Any) -> None:
    """Tell the step's result and wait to be told to go on."""
    sys.stdout.write(json.dumps({step: value}) + "\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.readline)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])))
