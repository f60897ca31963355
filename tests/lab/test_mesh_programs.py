"""Access rules by address mean what they meant: real databases and a mail server see their caller's own address,
whichever way it comes: by tunnel, in plain text through the proxy, by mutual TLS on the program's own port.

All of them trust loopback. A proxy that calls them from there would open them to the whole mesh.
"""

import contextlib
import re
import smtplib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from meshagent.lab import Host, recipes, trusting, wait_until
from tests.lab.mesh import Mesh, open_mesh
from tests.lab.sidecar import CallerSidecar, ServerSidecar, client_context, handshake, pem

#: Real programs by the dozen: 15 s of a quiet machine, and nothing that may hang for long.
pytestmark = [pytest.mark.root, pytest.mark.timeout(600), pytest.mark.xdist_group("programs")]

SERVICES = [
    ("maria", 3306, "mysql"),
    ("pg", 5432, "tcp"),
    ("pginside", 5433, "tcp"),
    ("mail", 25, "tcp"),
    ("guarded", 6379, "redis"),
    ("www", 80, "http"),
    ("secure", 443, "tls"),
]
PORTS = {name: port for name, port, _ in SERVICES if name != "pginside"}
LABEL = "labels:\n  security.istio.io/tlsMode: istio\n"


@pytest.fixture(
    scope="module",
    params=[pytest.param((4,), id="ipv4"), pytest.param((6,), id="ipv6", marks=pytest.mark.long)],
)
def mesh(request: pytest.FixtureRequest, envoy: Path) -> Iterator[Mesh]:
    """``web`` and ``other`` call the services of ``db``, which name only ``web``."""
    with open_mesh(request.param) as opened:
        web, other, db = (opened.lab.host(name) for name in ("web", "other", "db"))
        width = 32 if request.param == (4,) else 128
        grants = "".join(
            f"CREATE USER '{name}'@'{address}'; GRANT ALL ON app.* TO '{name}'@'{address}';\n"
            for name, address in (("here", "127.0.0.1"), ("here", "::1"), ("here", "localhost"), ("web", web.address))
        )
        recipes.mariadb(db, sql=grants.replace("; ", ";\n"))
        hba = [f"host all web {web.address}/{width} trust"]
        for port, listen in ((5432, "*"), (5433, "localhost")):
            made = trusting.postgresql(db, port, hba=hba, listen=listen)
            db.run(
                ["psql", "-h", str(made.directory), "-p", str(port), "-U", "postgres", "-c", "create role web login"]
            )
        trusting.postfix(db, networks=f"127.0.0.0/8 [::1]/128 {bracketed(web.address)}/{width}")
        recipes.redis(db)
        db.run(["redis-cli", "config", "set", "protected-mode", "yes"])
        recipes.nginx(db)
        https(db)
        opened.accepts = ("address-trust",)  # of the database on loopback only
        opened.join_all((web, []), (other, []), (db, SERVICES))
        yield opened


HTTPS = """
daemon off; pid nginx.pid; error_log stderr; user www-data; events { }
http { access_log off; server { listen 443 ssl; listen [::]:443 ssl;
  ssl_certificate own.pem; ssl_certificate_key own.key; return 200 "$remote_addr\\n"; } }
"""


def https(host: Host) -> None:
    """A web server with TLS of its own, known by ``own.pem``."""
    directory = host.private / "https"
    directory.mkdir()
    made = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-subj",
        "/CN=own",
    ]
    made += [
        "-addext",
        f"subjectAltName=IP:{host.address}",
        "-keyout",
        f"{directory}/own.key",
        "-out",
        f"{directory}/own.pem",
    ]
    host.run(made)
    (directory / "nginx.conf").write_text(HTTPS)
    program = host.popen(["nginx", "-p", str(directory), "-c", "nginx.conf"], log="https")
    recipes.until(program, lambda: host.connect(host.address, 443).close() is None)


@dataclass
class Way:
    """How the programs of ``db`` are reached."""

    mesh: Mesh
    name: str
    stack: contextlib.ExitStack

    def to(self, caller: Host, service: str) -> tuple[str, int]:
        """Where a client program on ``caller`` connects to."""
        port, db = PORTS[service], self.mesh.members["db"]
        if self.name == "tunnel":
            return self.mesh.resolve(caller, f"{service}.default.mesh.internal")[0], port
        if self.name == "mutual-tls" and caller is not db:
            return "127.0.0.1", port + 20_000
        return db.address, port


@pytest.fixture(scope="module", params=["tunnel", "inbound-all", "mutual-tls"])
def way(request: pytest.FixtureRequest, mesh: Mesh) -> Iterator[Way]:
    with contextlib.ExitStack() as stack:
        if request.param == "inbound-all":
            stack.enter_context(everything_comes_in_by_the_proxy(mesh))
        if request.param == "mutual-tls":
            stack.enter_context(redirected(mesh))
            for caller in (mesh.members["web"], mesh.members["other"]):
                for port in PORTS.values():
                    sidecar = CallerSidecar(caller, mesh.members["db"].address, port, port + 20_000)
                    stack.callback(sidecar.close)
        before = passed_on(mesh)
        yield Way(mesh, request.param, stack)
        assert (passed_on(mesh) > before) is (request.param != "tunnel"), "which way it really was"


def passed_on(mesh: Mesh) -> int:
    """Connections that the proxy of ``db`` passed on to where they were dialled."""
    (admin,) = (mesh.members["db"].root / "run/meshagent/proxy").glob("admin-*.sock")
    name = "cluster.InboundPassthroughCluster.upstream_cx_total"
    argv = ["curl", "-s", "--unix-socket", str(admin), f"http://envoy/stats?filter={name}"]
    return int(mesh.members["db"].run(argv).stdout.strip().rpartition(": ")[2] or 0)


@contextlib.contextmanager
def everything_comes_in_by_the_proxy(mesh: Mesh) -> Iterator[None]:
    db = mesh.members["db"]
    config = db.root / "etc/meshagent/agent.yaml"
    config.write_text("capture: {inbound: all}\n")
    wait_until(lambda: "chain arriving" in rules(db), 30, "everything redirected")
    yield
    config.write_text("{}\n")
    wait_until(lambda: "chain arriving" not in rules(db), 30, "nothing redirected")


def rules(host: Host) -> str:
    return host.run(["nft", "list", "table", "inet", "meshagent"]).stdout


@contextlib.contextmanager
def redirected(mesh: Mesh) -> Iterator[None]:
    """The declared services of ``db`` carry Istio's label, and the host has acted on it."""
    db = mesh.members["db"]
    every = {path: path.read_text() for path in (db.root / "etc/meshagent/services.d").glob("*.yaml")}
    files = {path: text for path, text in every.items() if LABEL not in text}  # ``way`` may have labelled them
    for path, text in files.items():
        path.write_text(text + LABEL)
    wait_until(lambda: ports(mesh) == {*PORTS.values(), 5433}, 30, "labelled ports redirected")
    yield
    for path, text in files.items():
        path.write_text(text)
    wait_until(lambda: not (files and ports(mesh)), 30, "no port redirected")


def ports(mesh: Mesh, *, plain: bool = True) -> set[int]:
    """Ports of ``db`` that are redirected, in the kernel too, and that let plain text pass or don't."""
    capture = mesh.status(mesh.members["db"])["capture"]
    found = {each["port"] for each in capture["redirected"] if each["plain"] is plain}
    return found if capture["in_sync"] else {0}


def bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def asked(host: Host, *argv: str) -> str:
    """What a client program printed, errors too."""
    done = host.run(["timeout", "8", *argv], check=False, timeout=15)
    return (done.stdout + done.stderr).strip()


def loopback(host: Host) -> str:
    return "::1" if ":" in host.address else "127.0.0.1"


def maria(host: Host, user: str, server: str, port: int = 3306) -> str:
    where = ["-h", server, "-P", str(port)]
    return asked(host, "mariadb", "--no-defaults", "--skip-ssl", *where, "-u", user, "-Ne", "select current_user()")


def test_mariadb_grants_name_the_caller_and_loopback_grants_stay_local(mesh: Mesh, way: Way) -> None:
    web, other, db = (mesh.members[name] for name in ("web", "other", "db"))
    assert maria(web, "web", *way.to(web, "maria")) == f"web@{web.address}"
    assert f"Access denied for user 'web'@'{other.address}'" in maria(other, "web", *way.to(other, "maria"))
    assert f"Access denied for user 'here'@'{web.address}'" in maria(web, "here", *way.to(web, "maria"))
    assert maria(db, "here", loopback(db)).startswith("here@")


def pg(host: Host, user: str, server: str, port: int = 5432) -> str:
    query = "select host(inet_client_addr())"
    return asked(host, "psql", "-h", server, "-p", str(port), "-U", user, "-d", "postgres", "-Atc", query)


def test_pg_hba_lines_name_the_caller_and_trust_in_loopback_is_not_for_others(mesh: Mesh, way: Way) -> None:
    web, other, db = (mesh.members[name] for name in ("web", "other", "db"))
    assert pg(web, "web", *way.to(web, "pg")) == web.address
    assert f'no pg_hba.conf entry for host "{other.address}"' in pg(other, "web", *way.to(other, "pg"))
    for caller in (web, other):
        assert f'no pg_hba.conf entry for host "{caller.address}"' in pg(caller, "postgres", *way.to(caller, "pg"))
    assert pg(db, "postgres", loopback(db)) in ("127.0.0.1", "::1")


def test_a_database_on_loopback_only_is_reached_but_never_from_a_loopback_address(mesh: Mesh) -> None:
    """The kernel doesn't route answers from loopback to the outside, so it sees the host's own address instead."""
    web, db = mesh.members["web"], mesh.members["db"]
    said = pg(web, "postgres", "pginside.default.mesh.internal", 5433)
    assert f'no pg_hba.conf entry for host "{db.address}"' in said


def relays(host: Host, server: str, port: int = 25) -> tuple[int, bytes]:
    """What the mail server says to mail for elsewhere."""

    def resolve_and_ask() -> tuple[int, bytes]:
        with smtplib.SMTP(server, port, local_hostname="client.test", timeout=20) as client:
            client.mail("sender@client.test")
            return client.rcpt("somebody@elsewhere.test")

    return host.inside(resolve_and_ask)


def test_a_mail_server_relays_for_whom_it_named_and_is_no_open_relay_for_others(mesh: Mesh, way: Way) -> None:
    web, other, db = (mesh.members[name] for name in ("web", "other", "db"))
    assert relays(web, *way.to(web, "mail"))[0] == 250
    code, said = relays(other, *way.to(other, "mail"))
    assert (code, b"Relay access denied" in said) == (554, True), said
    assert relays(db, loopback(db))[0] == 250
    log = next(program for program in mesh.lab.programs if program.argv[0] == "postfix").text()
    assert f"[{other.address}]" in log, "the mail log names the caller"


def greeted(host: Host, server: str, port: int = 6379) -> bytes:
    """What Redis says before it is asked: a proxy may lose what was sent right before a reset, as is sent to whoever
    speaks meanwhile."""
    with host.connect(server, port, timeout=20) as client:
        return client.makefile("rb").readline()


def test_redis_in_protected_mode_refuses_callers_as_it_refuses_every_other_host(mesh: Mesh, way: Way) -> None:
    web, db = mesh.members["web"], mesh.members["db"]
    assert b"protected mode" in greeted(web, *way.to(web, "guarded"))
    assert asked(db, "redis-cli", "-h", loopback(db), "ping") == "PONG"


# --- mutual TLS on the port itself


def fetch(host: Host, url: str, *options: str) -> str:
    return asked(host, "curl", "-gsS", "--max-time", "8", *options, url)


def url(host: Host, scheme: str = "http") -> str:
    return f"{scheme}://{bracketed(host.address)}/who"


def openssl(caller: Host, host: Host, *options: str) -> str:
    """What ``openssl s_client`` is answered on port 80."""
    words = ["openssl", "s_client", "-connect", f"{bracketed(host.address)}:80", "-quiet", "-servername", "x", *options]
    return asked(caller, "sh", "-c", f"printf 'GET /who HTTP/1.0\\r\\n\\r\\n' | {' '.join(words)}")


def seen(answer: str) -> tuple[str, str]:
    """The caller's address and identity as the web server's application is told them."""
    found = re.search(r"^(\S+) (?:.*;)?URI=([^;\s]+)", answer.partition("\r\n\r\n")[2], re.MULTILINE)
    return (found[1], found[2]) if found else ("", "")


def greeted_in_tls(caller: Host, address: str, port: int, keys_of: Host | None) -> bytes:
    """What a server that speaks first says inside mutual TLS; empty where it isn't reached."""
    with contextlib.suppress(OSError), handshake(caller, address, port, client_context(keys_of)) as client:
        return client.recv(100)
    return b""


STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: default}
spec: {mtls: {mode: STRICT}}
"""


def test_one_port_takes_mutual_tls_of_the_mesh_plain_text_and_tls_of_its_own(mesh: Mesh) -> None:
    web, db = mesh.members["web"], mesh.members["db"]
    mine, bundle = pem(web)
    (web.private / "mine.pem").write_text(mine)
    (web.private / "roots.pem").write_text(bundle)
    keys = [
        word
        for name, file in (("cert", "mine"), ("key", "mine"), ("CAfile", "roots"))
        for word in (f"-{name}", f"{web.private}/{file}.pem")
    ]
    spiffe = "spiffe://mesh.internal/ns/default/sa/web"
    own = ["--cacert", str(db.private / "https/own.pem")]
    with redirected(mesh):
        for alpn in ("istio", "istio-http/1.1"):
            assert seen(openssl(web, db, "-alpn", alpn, *keys)) == (web.address, spiffe)
        assert seen(openssl(web, db, "-alpn", "istio")) == ("", ""), "no certificate, no answer"
        assert fetch(web, url(db)) == web.address, "plain text as it came"
        assert fetch(web, url(db, "https"), *own) == web.address, "TLS is the web server's own"

        status = db.meshagent("status").stdout
        assert "port 80: peers speak mutual TLS on this port itself" in status
        plan = db.meshagent_json("plan", "--accept", "address-trust")
        reasons = {each["port"]: each["reason"] for each in plan["captured"]}
        assert "www: redirected to the proxy" in reasons[80] and "plain text goes on" in reasons[80]
        warned = [text for text in plan["warnings"] if "wait 3 s" in text]
        assert {text.partition(":")[0] for text in warned} == {"maria", "pg", "pginside", "mail"}

        mesh.hub.meshagent("hub", "apply", "-f", "-", input=STRICT)
        wait_until(lambda: ports(mesh, plain=False) == {*PORTS.values(), 5433}, 30, "strict")
        assert seen(openssl(web, db, "-alpn", "istio", *keys)) == (web.address, spiffe)
        assert web.address not in fetch(web, url(db)) + fetch(web, url(db, "https"), *own), "nothing else gets in"
        assert greeted_in_tls(web, db.address, 25, web).startswith(b"220 ")
        assert greeted_in_tls(web, db.address, 25, None) == b"", "nobody without a certificate"
        mesh.hub.meshagent("hub", "delete", "PeerAuthentication", "strict")
        wait_until(lambda: fetch(web, url(db)) == web.address, 30, "permissive again")


LEGACY = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: old}}
spec:
  hosts: [old.example]
  ports: [{{number: 7000, name: tcp, protocol: TCP, targetPort: 7001}}]
  location: MESH_INTERNAL
  resolution: STATIC
  endpoints: [{{address: "{address}", serviceAccount: other, labels: {{security.istio.io/tlsMode: istio}}}}]
"""


def test_a_workload_behind_a_sidecar_is_called_as_its_sidecar_wants_it(mesh: Mesh) -> None:
    web, old = mesh.members["web"], mesh.lab.host("old")
    sidecar = ServerSidecar(old, 7001, keys_of=mesh.members["other"])
    mesh.hub.meshagent("hub", "apply", "-f", "-", input=LEGACY.format(address=old.address))

    def answered() -> bool:
        with (
            web.connect(mesh.resolve(web, "old.example")[0], 7000, timeout=5) as client,
            client.makefile("rwb") as lines,
        ):
            lines.write(b"hello\n")
            lines.flush()
            return lines.readline() == b"HELLO\n"

    wait_until(answered, 30, "an answer through the sidecar")
    sidecar.close()
    seen = sidecar.seen[-1]
    assert seen.caller == "spiffe://mesh.internal/ns/default/sa/web"
    assert (seen.alpn, seen.sni) == ("istio", "outbound_.7000_._.old.example")
