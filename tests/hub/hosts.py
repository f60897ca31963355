"""Hosts as tests need them: keys born here, real requests, and a real hub on loopback to send them to."""

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import Any, ParamSpec

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from meshagent.hub.app import run_hub
from meshagent.hub.settings import HubSettings
from meshagent.hub.store.rows import HostRow
from meshagent.model.address import HostPort, parse_host_port
from meshagent.model.identity import Identity, parse_spiffe_id
from meshagent.model.paths import Paths
from meshagent.model.posture import Posture
from meshagent.model.service import DeclaredService, ServiceHealth, ServiceProtocol
from meshagent.protocol import signing
from meshagent.protocol.announce import Announced, AnnouncedService
from meshagent.protocol.enrol import Token, parse_token
from meshagent.protocol.pb.meshagent_v1_pb2 import EnrollRequest, EnrollResponse
from meshagent.runtime.clock import SystemClock
from meshagent.transport import local
from meshagent.transport.channel import enroll_call, hub_channel
from meshagent.transport.tls import PinnedHub, look_at_hub

P = ParamSpec("P")


def on_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """A test that is a coroutine, run on a loop of its own."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class JumpingClock:
    """The machine's clock, moved by ``offset`` seconds wherever a test wants it."""

    def __init__(self) -> None:
        self.offset = 0.0
        self._real = SystemClock()

    def monotonic(self) -> float:
        return self._real.monotonic() + self.offset

    def now(self) -> datetime:
        return self._real.now() + timedelta(seconds=self.offset)


def csr_pem(
    key: Any = None,
    names: list[x509.GeneralName] | None = None,
    algorithm: Any = None,
    subject: x509.Name | None = None,
) -> str:
    """A PKCS#10 request; by default what a good host sends."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject or x509.Name([]))
    if names is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
    signed = builder.sign(key or ec.generate_private_key(ec.SECP256R1()), algorithm or hashes.SHA256())
    return signed.public_bytes(Encoding.PEM).decode()


@dataclass
class Newcomer:
    """A host that is about to enrol; its keys stay what they are over retries."""

    name: str = "web-1"
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    host_key: signing.HostPrivateKey = field(default_factory=signing.new_host_key)

    def request(self, token: Token, **changes: Any) -> EnrollRequest:
        """A good request; ``changes`` replace fields after it was signed."""
        csr, host_key = csr_pem(self.key), signing.public_pem(self.host_key)
        message = signing.enrolment_transcript(
            ca_hash=token.ca_hash, token_id=token.id, csr_pem=csr, host_key_pem=host_key
        )
        request = EnrollRequest(
            token_id=token.id,
            token_secret=token.secret,
            host_name=self.name,
            csr_pem=csr,
            host_key_pem=host_key,
            host_key_signature=signing.sign(self.host_key, message),
            addresses=["10.0.0.1"],
            unix_ms=int(time.time() * 1000),
            boot_id="boot-1",
            agent_version="0.1.0",
        )
        for field_name, value in changes.items():
            setattr(request, field_name, value)
        return request

    def identity(self, response: EnrollResponse) -> Identity:
        """What the hub's answer makes of this host."""
        leaf = x509.load_pem_x509_certificate(response.cert_chain[0].encode())
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return Identity(
            spiffe_id=parse_spiffe_id(names.get_values_for_type(x509.UniformResourceIdentifier)[0]),
            serial=f"{leaf.serial_number:x}",
            not_before=leaf.not_valid_before_utc,
            not_after=leaf.not_valid_after_utc,
            chain_pem=response.cert_chain[0],
            bundle_pem=response.cert_chain[-1],
            key_pem=self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        )


@dataclass
class RunningHub:
    """A hub on loopback and its administrator."""

    paths: Paths
    address: HostPort
    task: "asyncio.Task[None]"
    stopping: asyncio.Event

    async def admin(self, method: str, **params: Any) -> Any:
        return await asyncio.to_thread(local.call, self.paths.hub_socket, method, params)

    async def token(self, account: str = "web", **options: Any) -> Token:
        answer = await self.admin("token.create", service_account=account, **options)
        return parse_token(answer["token"])

    async def pinned(self, token: Token) -> PinnedHub:
        return await look_at_hub(self.address, token.ca_hash)

    async def enroll(self, newcomer: Newcomer, token: Token, **changes: Any) -> EnrollResponse:
        """As an agent does it: look, pin, then speak."""
        hub = await self.pinned(token)
        channel = hub_channel(self.address, roots_pem=hub.root_pem, server_name=hub.server_name)
        async with channel:
            return await enroll_call(channel, newcomer.request(token, **changes))

    async def join(self, name: str = "web-1", account: str = "web") -> Identity:
        """A fresh host with a fresh token."""
        newcomer = Newcomer(name)
        return newcomer.identity(await self.enroll(newcomer, await self.token(account)))

    def channel(self, identity: Identity) -> Any:
        name = f"hub.{identity.spiffe_id.trust_domain}"
        return hub_channel(self.address, roots_pem=identity.bundle_pem, server_name=name, identity=identity)

    async def stop(self) -> None:
        self.stopping.set()
        await self.task


@contextlib.asynccontextmanager
async def running_hub(
    root: Path, *, grace: float = 15.0, clock: Any = None, address: str = "127.0.0.1"
) -> AsyncIterator[RunningHub]:
    """A hub below ``root``, stopped in order at the end; start it again on the same root to restart it."""
    paths = Paths(root)
    stop = asyncio.Event()
    settings = HubSettings(paths, (HostPort(address, 0),), HostPort(address, 15012), grace=grace)
    task = asyncio.create_task(run_hub(settings, clock=clock, stop=stop))
    while not paths.hub_socket.exists():
        await asyncio.sleep(0.005)
        if task.done():
            task.result()
    status = await asyncio.to_thread(local.call, paths.hub_socket, "status", {})
    hub = RunningHub(paths, parse_host_port(status["listen"][0]), task, stop)
    try:
        yield hub
    finally:
        await hub.stop()


def announced_service(name: str = "cache", port: int = 6379, **changes: Any) -> AnnouncedService:
    """A healthy service on loopback."""
    protocol = ServiceProtocol(changes.pop("protocol", "tcp"))
    healthy = changes.pop("healthy", True)
    target = ip_address(changes.pop("target_address", "127.0.0.1"))
    declared = DeclaredService(
        name=name, port=port, target_port=changes.pop("target_port", port), protocol=protocol, **changes
    )
    return AnnouncedService(declared, target, ServiceHealth(healthy, "" if healthy else "refused"))


def announced(*services: AnnouncedService, generation: int = 1, address: str = "10.0.0.1", **changes: Any) -> Announced:
    """What a host says of itself."""
    return Announced(generation, "boot-1", (IPv4Address(address),), services, Posture.PERMISSIVE, **changes)


def host_row(name: str = "web-1", account: str = "web", host_id: int = 0, **changes: Any) -> HostRow:
    """An enrolled host as the store holds it."""
    return HostRow(host_id, name, "default", account, f"PEM of {name}", f"hash of {name}", NOW, NOW, **changes)
