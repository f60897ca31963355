"""A hub of another process and many simulated agents (``tests.bench.agents``) that are enrolled there already."""

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from meshagent.agent.upstream.announce import Announcer
from meshagent.agent.upstream.dial import ALONE_SECONDS, Dialer
from meshagent.agent.upstream.session import Session
from meshagent.hub.authority.enrolment import HostFacts, Signer, enrol
from meshagent.hub.authority.issue import spki_sha256
from meshagent.hub.authority.policy import EnrolmentAsk
from meshagent.hub.authority.roots import open_roots
from meshagent.hub.authority.tokens import TokenAsk, new_token
from meshagent.hub.store.interface import Transaction
from meshagent.hub.store.sqlite import open_store
from meshagent.model.address import HostPort, parse_ip
from meshagent.model.identity import Identity
from meshagent.model.posture import Posture
from meshagent.model.service import DeclaredService, ServiceHealth, ServiceProtocol
from meshagent.protocol.announce import Announced, AnnouncedService, announcement_message
from meshagent.protocol.enrol import secret_hash
from meshagent.protocol.node import NodeId, Workload, build_node
from meshagent.protocol.pb.meshagent_v1_pb2 import Announcement, EnrollResponse
from meshagent.protocol.subscriber import Received, Subscriber
from meshagent.protocol.types import CDS, EDS, HOST_POLICY, LDS, NDS
from meshagent.runtime.clock import SystemClock
from meshagent.runtime.latest import Latest
from tests.hub.hosts import Newcomer, csr_pem

_DOMAIN = "mesh.internal"


@dataclass
class Fleet:
    """``port`` is the hub's; each identity is enrolled as ``agent-N``."""

    root: Path
    port: int
    identities: list[Identity]

    @property
    def hub(self) -> HostPort:
        return HostPort("127.0.0.1", self.port)

    @contextlib.contextmanager
    def running(self) -> Iterator["subprocess.Popen[bytes]"]:
        """The hub, ready; killed at the end."""
        argv = [sys.executable, "-m", "meshagent.cli.entry", "--root", str(self.root), "hub", "run", "--http", "off"]
        socket = self.root / "run/meshagent-hub/admin.sock"
        socket.unlink(missing_ok=True)
        with (self.root / "hub.log").open("ab") as log:
            program = subprocess.Popen([*argv, "--listen", f"127.0.0.1:{self.port}"], stdout=log, stderr=log)
        try:
            while not socket.exists():
                assert program.poll() is None, (self.root / "hub.log").read_text()[-2000:]
                time.sleep(0.01)
            yield program
        finally:
            program.kill()
            program.wait()

    def processor_time(self, program: "subprocess.Popen[bytes]") -> float:
        """Seconds that the hub has computed."""
        fields = Path(f"/proc/{program.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self, program: "subprocess.Popen[bytes]") -> float:
        """What the hub keeps in memory, MB."""
        text = Path(f"/proc/{program.pid}/smaps_rollup").read_text()
        return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Rss:")) / 1024


async def enrolled(root: Path, count: int, port: int) -> Fleet:
    """Enrol ``count`` hosts in the database of a hub that doesn't run yet; one key serves them all."""
    state = root / "var/lib/meshagent-hub"
    store = await open_store(state / "hub.db")
    now = SystemClock().now()
    signer = Signer(await open_roots(store, state / "ca", _DOMAIN, now), _DOMAIN)
    row, token = new_token(TokenAsk("fleet", uses=count), signer.roots.ca_hash, _DOMAIN, now)
    source = parse_ip("127.0.0.1")
    assert source is not None
    one = Newcomer(key=ec.generate_private_key(ec.SECP256R1()))
    csr = csr_pem(one.key)

    def work(tx: Transaction) -> list[Identity]:
        tx.put_token(row)
        found = []
        for number in range(count):
            digest = spki_sha256(ec.generate_private_key(ec.SECP256R1()).public_key()).hex()
            ask = EnrolmentAsk(token.id, secret_hash(token.secret), f"agent-{number}", digest, source)
            issued = enrol(tx, ask, HostFacts(csr, "PEM", ("10.0.0.1",), "boot", "0"), signer, now)
            found.append(one.identity(EnrollResponse(cert_chain=issued.chain)))
        return found

    identities = await store.transact(work)
    await store.close()
    return Fleet(root, port, identities)


def serving(count: int, services: int) -> list[tuple[str, ...]]:
    """What each of ``count`` agents serves: the first quarter of them shares the services."""
    owners = max(1, count // 4)
    names = [f"svc-{n}" for n in range(services)]
    return [tuple(names[n::owners]) if n < owners else () for n in range(count)]


@dataclass
class RealAgent:
    """The agent's own way to a hub, without a host around it: its session, its announcements, its backoff."""

    number: int
    fleet: Fleet
    services: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        identity = self.fleet.identities[self.number]
        address = IPv4Address("10.200.0.1") + self.number
        node = build_node(
            Workload(NodeId(address, f"agent-{self.number}", "default"), identity.spiffe_id.service_account, (address,))
        )
        self.subscriber = Subscriber(node, (CDS, LDS, NDS, HOST_POLICY), {EDS: ()})
        self.wanted: Latest[Mapping[str, frozenset[str]]] = Latest({EDS: frozenset()})
        self.message = Latest(self._message(""))
        dialer, clock, known = Dialer(f"hub.{_DOMAIN}", patience=ALONE_SECONDS), SystemClock(), Latest(identity)
        hubs = [self.fleet.hub]
        self.session = Session(self.subscriber, self._judge, self.wanted, dialer.ads, hubs, known, clock)
        self.announcer = Announcer(self.message, dialer.announce, hubs, known, clock, first=self.session.state)
        self.heard: dict[str, float] = {}
        self.answered: tuple[int, frozenset[str]] = (0, frozenset())  # a stream, and types the hub has spoken of on it

    def _message(self, sick: str) -> Announcement:
        address = IPv4Address("10.200.0.1") + self.number
        services = tuple(
            AnnouncedService(
                DeclaredService(name=name, port=8080, target_port=8080, protocol=ServiceProtocol.TCP),
                address,
                ServiceHealth(name != sick, "refused" if name == sick else ""),
            )
            for name in self.services
        )
        return announcement_message(Announced(1, "boot", (address,), services, Posture.PERMISSIVE))

    def say(self, sick: str) -> None:
        """One service here is sick now ('' = none)."""
        self.message.set(self._message(sick))

    async def _judge(self, received: Received) -> Mapping[str, str]:
        before = self.answered[1] if self.answered[0] == received.stream else frozenset()
        self.answered = received.stream, before | {received.type_url}
        for name in received.changed:
            self.heard[name] = time.monotonic()
        if received.type_url == CDS:
            names = {name for name in received.changed if name.startswith("outbound|")}
            self.wanted.set({EDS: self.wanted.value[EDS] | names})
        return {}

    @property
    def connected(self) -> bool:
        """Both streams are up."""
        return self.session.state.value.connected and self.announcer.state.value.connected

    @property
    def complete(self) -> bool:
        """Both streams are up, and the hub has answered on every type since."""
        asked = {CDS, EDS, LDS, NDS, HOST_POLICY}
        return self.connected and self.answered[0] == self.subscriber.stream and asked <= self.answered[1]

    @property
    def known(self) -> int:
        """Endpoint sets it has."""
        return len(self.subscriber.resources.get(EDS, {}))

    def start(self) -> list["asyncio.Task[None]"]:
        """Both streams, for good."""
        return [asyncio.create_task(self.session.run()), asyncio.create_task(self.announcer.run())]
