"""A mesh without agent and hub processes: what the hub's snapshot builder makes, fed to real Envoys on lab hosts.

Each host has an Envoy with a static bootstrap, a process's worth of applications, and by hand the few kernel rules that
the data path needs. The discovery service is the hub's own (fan-out, sessions, publisher) in a thread of the test.
"""

import asyncio
import datetime
import json
import os
import sys
import threading
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from envoy.config.core.v3.base_pb2 import DataSource, Node
from envoy.extensions.transport_sockets.tls.v3.common_pb2 import CertificateValidationContext, TlsCertificate
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret

from meshagent.hub.discovery.fanout import Fanout
from meshagent.hub.discovery.rejections import Rejections
from meshagent.hub.discovery.server import HostSession
from meshagent.hub.snapshot.messages import entry
from meshagent.hub.state import HostView, MeshEndpoint, MeshPort, MeshService, MeshState
from meshagent.lab import Host, Lab, Program, wait_until
from meshagent.model.address import IPAddress, parse_ip
from meshagent.model.identity import SpiffeId
from meshagent.model.marks import AGENT_MARK, CLIENT_SOURCE_MARK, PROXY_MARK, PROXY_ZONE, ROUTE_TABLE, RULE_PRIORITY
from meshagent.protocol.entry import Snapshot
from meshagent.protocol.publisher import Verdict
from meshagent.protocol.types import SDS
from meshagent.runtime.clock import SystemClock
from meshagent.runtime.latest import Latest
from meshagent.transport import grpc_server, unix
from meshagent.transport.ads_server import AdsServer, Ending
from meshagent.transport.methods import DELTA_SECRETS

T = TypeVar("T")
PROXY_UID = 61001
DOMAIN = "mesh.internal"

RULES = f"""
table inet meshagent {{
 chain raw_output {{ type filter hook output priority raw; policy accept;
  meta mark {{ {CLIENT_SOURCE_MARK}, {PROXY_MARK} }} ct original zone set {PROXY_ZONE}
 }}
 chain mark_output {{ type route hook output priority mangle; policy accept;
  ct direction original meta mark {CLIENT_SOURCE_MARK} ct mark set {CLIENT_SOURCE_MARK}
  ct direction reply ct mark {CLIENT_SOURCE_MARK} meta mark set {CLIENT_SOURCE_MARK}
 }}
 chain nat_output {{ type nat hook output priority -100; policy accept;
  meta mark {{ {CLIENT_SOURCE_MARK}, {PROXY_MARK}, {AGENT_MARK} }} return
  meta skuid {PROXY_UID} return
  tcp flags & (fin|syn|rst|ack) != syn return
  ip daddr {{ 240.240.0.0/16, 192.0.2.0/24 }} meta l4proto tcp redirect to :15001
  ip6 daddr 2001:2::/48 meta l4proto tcp redirect to :15001
 }}
}}
"""

#: argv: JSON list of [kind, address, port]. ``greet`` speaks first and echoes; ``count`` counts what it is sent,
#: slowly; ``pour`` sends much and closes; ``http`` shows what arrived.
APPLICATIONS = r"""
import http.server, json, socket, sys, threading, time
def listening(address, port):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    s = socket.socket(family); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if address == "::": s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    s.bind((address, port)); s.listen(256); return s
def plain(address): return address.removeprefix("::ffff:")
def greet(c, peer):
    name = socket.gethostname()
    c.sendall(f"{plain(peer[0])} {plain(c.getsockname()[0])} {name}\n".encode())
    while data := c.recv(65536): c.sendall(data)
def count(c, peer):
    total = 0
    while data := c.recv(65536): total += len(data); time.sleep(0.002)
    print("counted", total, flush=True)
def pour(c, peer): c.sendall(b"x" * 3_000_000)
def serve(function, s):
    def one(c, peer):
        try: function(c, peer)
        except OSError as error: print("error", error, flush=True)
        finally: c.close()
    while True: threading.Thread(target=one, args=s.accept(), daemon=True).start()
class Shows(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = json.dumps({"peer": plain(self.client_address[0]), "local": plain(self.connection.getsockname()[0]),
            "host": socket.gethostname(), "line": self.requestline, "headers": self.headers.items(),
            "length": len(self.rfile.read(length))}).encode()
        self.send_response(500 if "fail" in self.path else 200); self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Answer", "kept"); self.end_headers(); self.wfile.write(body)
    do_POST = do_OPTIONS = do_GET
    def log_message(self, *args): pass
for kind, address, port in json.loads(sys.argv[1]):
    s = listening(address, port)
    if kind == "http":
        server = http.server.ThreadingHTTPServer((address, port), Shows, bind_and_activate=False)
        server.socket.close(); server.socket = s
        target = server.serve_forever; args = ()
    else:
        target = serve; args = ({"greet": greet, "count": count, "pour": pour}[kind], s)
    threading.Thread(target=target, args=args, daemon=True).start()
print("ready", flush=True)
threading.Event().wait()
"""


class Authority:
    """A root and leaves of SPIFFE IDs, as short as can be."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "root")])
        constraints = x509.BasicConstraints(ca=True, path_length=None)
        identifier = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        self.root = self._sign(self._name, self._key.public_key(), constraints, [identifier])

    def secrets(self, account: str) -> dict[str, Secret]:
        """``default`` and ``ROOTCA`` of a workload."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(account)])
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        leaf = self._sign(x509.Name([]), key.public_key(), name, [usage])
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        chain = TlsCertificate(certificate_chain=_inline(_pem(leaf)), private_key=_inline(pem))
        roots = CertificateValidationContext(trusted_ca=_inline(_pem(self.root)))
        return {
            "default": Secret(name="default", tls_certificate=chain),
            "ROOTCA": Secret(name="ROOTCA", validation_context=roots),
        }

    def _sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        critical: x509.ExtensionType,
        others: Iterable[x509.ExtensionType],
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder(self._name, subject, key, x509.random_serial_number())
        builder = builder.not_valid_before(now - datetime.timedelta(minutes=2))
        builder = builder.not_valid_after(now + datetime.timedelta(days=1)).add_extension(critical, critical=True)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        for extension in (*others, issuer):
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(self._key, hashes.SHA256())


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _inline(data: bytes) -> DataSource:
    return DataSource(inline_bytes=data)


class _Fixed:
    """An ADS session with one unchanging snapshot (the agent's SDS in miniature)."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot: Latest[Snapshot] = Latest(snapshot)
        self.ended: Latest[Ending | None] = Latest(None)

    def on_verdict(self, verdict: Verdict) -> None:
        pass

    def on_subscription(self, type_url: str, wildcard: bool, names: frozenset[str]) -> None:
        pass

    async def close(self) -> None:
        pass


class _Recording(HostSession):
    """A session of the hub that also keeps what the client said."""

    verdicts: list[Verdict]

    def on_verdict(self, verdict: Verdict) -> None:
        self.verdicts.append(verdict)
        super().on_verdict(verdict)


@dataclass(slots=True)
class Member:
    """One host of the mesh and what runs on it."""

    host: Host
    account: str
    envoy: Program
    admin: Path
    applications: Program | None = None
    verdicts: list[Verdict] = field(default_factory=list)

    def admin_get(self, path: str, method: str = "GET") -> str:
        """Ask this Envoy's admin interface."""
        argv = ["curl", "-s", "-X", method, "--unix-socket", str(self.admin), f"http://envoy{path}"]
        return self.host.run(argv).stdout


class MeshByHand:
    """Hosts with Envoys that follow ``state``. Use as a context manager around an open lab."""

    def __init__(self, lab: Lab, envoy: Path) -> None:
        self.lab = lab
        self.envoy = envoy
        self.members: dict[str, Member] = {}
        self.authority = Authority()
        self.rejections = Rejections()
        self.state: Latest[MeshState] = Latest(MeshState(trust_domain=DOMAIN))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="hub", daemon=True)
        self._servers: list[Any] = []

    def __enter__(self) -> "MeshByHand":
        self._thread.start()
        self.call(self._serve())
        return self

    def __exit__(self, *_: object) -> None:
        self.call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the hub's loop and wait for it."""
        future: Future[T] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        return future.result(20)

    # the hub

    async def _serve(self) -> None:
        self._fanout = Fanout(self.state)
        self._running = asyncio.ensure_future(self._fanout.run())
        await self._listen(self.lab.directory / "xds.sock", AdsServer(self._open).handlers())

    async def _open(self, node: Node, _call: grpc_server.Call) -> HostSession:
        session = _Recording(node.id, self._fanout, self.rejections, SystemClock())
        session.verdicts = self.members[node.id].verdicts
        return session

    async def _listen(self, path: Path, handlers: Any) -> None:
        server = grpc_server.new_server()
        grpc_server.add_methods(server, handlers, grpc_server.local_peer)
        grpc_server.bind_unix(server, path, unix.Access(mode=0o666))
        await server.start()
        self._servers.append(server)

    async def _stop(self) -> None:
        self._running.cancel()
        for server in self._servers:
            await server.stop(None)

    def publish(self, change: Callable[[MeshState], MeshState]) -> None:
        """Set the mesh's new state; returns when it is set, not when hosts have it."""

        async def set_it() -> None:
            self.state.set(change(self.state.value))

        self.call(set_it())

    # hosts

    def add(
        self, name: str, account: str, presents: str = "", applications: list[tuple[str, str, int]] | None = None
    ) -> Member:
        """A host with Envoy and rules. ``presents``: the account in its certificate, when it should be another."""
        host = self.lab.host(name)
        _program_kernel(host)
        secrets = self.authority.secrets(spiffe(presents or account))
        snapshot = {SDS: {n: entry(secret) for n, secret in secrets.items()}}

        async def fixed(_node: Node, _call: grpc_server.Call) -> _Fixed:
            return _Fixed(snapshot)

        sds = self.lab.directory / f"sds-{name}.sock"
        self.call(self._listen(sds, AdsServer(fixed).handlers(DELTA_SECRETS)))
        directory = host.root / "proxy"
        directory.mkdir(mode=0o700)
        os.chown(directory, PROXY_UID, PROXY_UID)
        view = HostView(name, "default", SpiffeId(DOMAIN, "default", account), addresses(host), connected=True)
        self.publish(lambda s: replace(s, hosts=(*s.hosts, view)))
        member = Member(host, account, None, directory / "admin.sock")  # type: ignore[arg-type]
        self.members[name] = member
        member.envoy = self._start_envoy(member, directory, sds)
        if applications:
            member.applications = start_applications(host, applications)
        return member

    def _start_envoy(self, member: Member, directory: Path, sds: Path) -> Program:
        config = directory / "bootstrap.json"
        config.write_text(json.dumps(_bootstrap(member, self.lab.directory / "xds.sock", sds), indent=1))
        config.chmod(0o644)
        number = str(len(self.members) + int(self.lab.name[3:], 16) % 30_000)
        argv = ["setpriv", f"--reuid={PROXY_UID}", f"--regid={PROXY_UID}", "--clear-groups"]
        argv += [f"--{kind}=-all,+net_admin" for kind in ("inh-caps", "ambient-caps", "bounding-set")]
        argv += [str(self.envoy), "-c", str(config), "--base-id", number, "--concurrency", "1", "-l", "warning"]
        return member.host.popen(argv, log="envoy")

    def service(
        self,
        name: str,
        port: MeshPort,
        endpoints: Iterable[tuple[str, dict[str, Any]]],
        *,
        number: int,
        target_port: int,
        accounts: Iterable[str] = (),
        claimed: tuple[IPAddress, ...] = (),
    ) -> MeshService:
        """A service served by members (name, further fields of the endpoint)."""
        made = tuple(self._endpoint(host, port, target_port, more) for host, more in endpoints)
        wanted = tuple(spiffe(a) for a in accounts) or tuple(sorted({e.spiffe_id for e in made}))
        return MeshService(
            host=f"{name}.default.{DOMAIN}",
            name=name,
            namespace="default",
            ports=(port,),
            virtual4=parse_ip(f"240.240.0.{number}"),  # type: ignore[arg-type]
            virtual6=parse_ip(f"2001:2::{number:x}"),  # type: ignore[arg-type]
            claimed=claimed,
            service_accounts=wanted,
            endpoints=made,
        )

    def _endpoint(self, name: str, port: MeshPort, target_port: int, more: dict[str, Any]) -> MeshEndpoint:
        member = self.members[name]
        return MeshEndpoint(
            port.number,
            target_port,
            name,
            addresses(member.host),
            spiffe(member.account),
            **{"target_address": "::", **more},
        )

    def settle(self, *names: str) -> None:
        """Wait until these members' Envoys (default: all) serve the newest state."""
        for name in names or tuple(self.members):
            wait_until(lambda name=name: self._served(name), 20, f"Envoy of {name} serves the state")  # type: ignore[misc]

    def _served(self, name: str) -> bool:
        wanted = self._fanout._builder.snapshot(name)
        got: dict[tuple[str, str], str] = {}
        for verdict in list(self.members[name].verdicts):
            if not verdict.error:
                got.update({(verdict.type_url, resource): version for resource, version in verdict.resources.items()})
                for resource in verdict.removed:
                    got.pop((verdict.type_url, resource), None)
        types = {type_url for type_url, _ in got}
        flat = {(t, n): e.version for t, entries in wanted.items() if "envoy" in t for n, e in entries.items()}
        return flat == got and len(types) >= 2 and not self._warming(name)

    def _warming(self, name: str) -> bool:
        text = self.members[name].admin_get(
            "/stats?filter=total_(listeners|clusters)_warming|total_listeners_warming|warming_clusters"
        )
        return any(int(line.rpartition(": ")[2]) for line in text.splitlines() if ": " in line)


def spiffe(account: str) -> str:
    return f"spiffe://{DOMAIN}/ns/default/sa/{account}"


def addresses(host: Host) -> tuple[IPAddress, ...]:
    return tuple(a for text in host.addresses if (a := parse_ip(text)))


def start_applications(host: Host, applications: list[tuple[str, str, int]]) -> Program:
    program = host.popen(
        [sys.executable, "-c", APPLICATIONS, json.dumps(applications)], log=f"applications-{len(host.lab.programs)}"
    )
    wait_until(lambda: "ready" in program.text(), what=f"applications on {host.name}")
    return program


def _program_kernel(host: Host) -> None:
    host.run(["nft", "-f", "-"], input=RULES)
    families = [f for f, address in (("-4", host.address4), ("-6", host.address6)) if address]
    for family, virtual in (("-4", "240.240.0.0/16"), ("-6", "2001:2::/48")):
        if family == "-4" or family in families:
            mark = f"fwmark {CLIENT_SOURCE_MARK} lookup {ROUTE_TABLE} priority {RULE_PRIORITY}"
            host.run(["ip", family, "rule", "add", *mark.split()])
            host.run(["ip", family, "route", "add", "local", "default", "dev", "lo", "table", str(ROUTE_TABLE)])
            host.run(["ip", family, "route", "add", virtual, "dev", "lo"])


def _bootstrap(member: Member, xds: Path, sds: Path) -> dict[str, Any]:
    """What the agent's bootstrap holds, as far as the data path needs it."""
    mark = {"level": 1, "name": 36, "int_value": PROXY_MARK, "state": "STATE_PREBIND"}
    ads = {"api_type": "DELTA_GRPC", "transport_api_version": "V3", "grpc_services": [_grpc("xds-grpc")]}
    here = {"ads": {}, "resource_api_version": "V3"}
    return {
        "node": {"id": member.host.name, "cluster": member.host.name},
        "admin": {"address": {"pipe": {"path": str(member.admin)}}},
        "cluster_manager": {"upstream_bind_config": {"socket_options": [mark]}},
        "dynamic_resources": {"ads_config": ads, "cds_config": here, "lds_config": here},
        "static_resources": {"clusters": [_unix_cluster("xds-grpc", xds), _unix_cluster("sds-grpc", sds)]},
    }


def _grpc(cluster: str) -> dict[str, Any]:
    return {"envoy_grpc": {"cluster_name": cluster}}


def _unix_cluster(name: str, path: Path) -> dict[str, Any]:
    options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    endpoint = {"endpoint": {"address": {"pipe": {"path": str(path)}}}}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        "typed_extension_protocol_options": {
            options: {
                "@type": f"type.googleapis.com/{options}",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
    }
