"""A host that hands more than the mesh to its proxy: what leaves it, what comes in, what its containers send."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meshagent.guard.client import GuardClient
from meshagent.guard.decide import HUNG_GATE
from meshagent.lab import Host, recipes, wait_until
from meshagent.model.marks import AGENT_MARK
from tests.fakes.units import units
from tests.lab.mesh import Mesh, open_mesh

pytestmark = pytest.mark.root

INBOUND = "InboundPassthroughCluster"


@pytest.fixture(scope="module")
def mesh(envoy: Path) -> Iterator[Mesh]:
    """``web`` and ``cache`` in the mesh, ``shop`` a web server outside."""
    with open_mesh() as opened:
        web, cache, shop = (opened.lab.host(name) for name in ("web", "cache", "shop"))
        recipes.redis(cache)
        recipes.nginx(shop)
        recipes.nginx(web)
        opened.join_all((web, []), (cache, [("cache", 6379, "redis")]))
        yield opened


def configure(host: Host, text: str) -> None:
    path = host.root / "etc/meshagent/agent.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def rules(host: Host) -> str:
    """Of whichever backend."""
    nft = host.run(["nft", "list", "table", "inet", "meshagent"], check=False).stdout
    return nft + "".join(host.run([f"{word}-legacy-save"]).stdout for word in ("iptables", "ip6tables"))


def passed_on(host: Host, cluster: str = "PassthroughCluster") -> int:
    """Connections that the host's proxy has passed on to where they were dialled."""
    (admin,) = (host.root / "run/meshagent/proxy").glob("admin-*.sock")
    name = f"cluster.{cluster}.upstream_cx_total"
    answer = host.run(["curl", "-s", "--unix-socket", str(admin), f"http://envoy/stats?filter={name}"]).stdout
    return int(answer.removeprefix(f"{name}: ") or 0)


def fetch(host: Host, address: str) -> str:
    shown = f"[{address}]" if ":" in address else address
    return host.run(["curl", "-sS", "--max-time", "5", f"http://{shown}/who"]).stdout


def test_everything_that_leaves_goes_through_the_proxy_when_asked_and_open_connections_never_notice(mesh: Mesh) -> None:
    web, shop = mesh.members["web"], mesh.lab.hosts["shop"]
    with mesh.busy(web, "cache") as busy:
        assert fetch(web, shop.address4).startswith(web.address4)
        assert passed_on(web) == 0

        configure(web, "capture: {outbound: all}\n")
        wait_until(lambda: "chain everything" in rules(web), 10, "everything captured")
        for version, address in enumerate(shop.addresses, 1):
            assert fetch(web, address)
            wait_until(lambda version=version: passed_on(web) >= version, 5, "seen by the proxy")  # type: ignore[misc]
        assert mesh.redis(web, "cache") == "PONG"
        with pytest.raises(ConnectionRefusedError):
            web.connect("240.240.255.1", 80)
        assert mesh.conditions(web) == []
        busy.goes_on()

        configure(web, "{}\n")
        wait_until(lambda: "chain everything" not in rules(web), 10, "only the mesh captured")
        before = passed_on(web)
        assert fetch(web, shop.address4).startswith(web.address4)
        assert passed_on(web) == before
        busy.goes_on()


@pytest.mark.parametrize("backend", ["nft", "iptables"])
def test_with_policy_closed_nothing_leaves_while_a_stranger_holds_the_port_of_a_dead_proxy(
    mesh: Mesh, backend: str
) -> None:
    """Dead and robbed while the agent is away, still so when it is back: refused at every moment, hub and ssh not."""
    web, shop = mesh.members["web"], mesh.lab.hosts["shop"]
    configure(web, f"capture: {{outbound: all, on_proxy_failure: closed, backend: {backend}}}\n")
    wait_until(lambda: "everything" in rules(web).lower() and mesh.calm(web) is None, 15, "everything captured")
    mesh.agents[web.name].stop()
    with web.capture(f"tcp and (host {shop.address4} or host {shop.address6})") as wire:
        web.run(["kill", "-9", str(mesh.proxy_record(web)["data"]["handle"]["pid"])])
        # The kernel closes a dying proxy's sockets some milliseconds before it tells anybody that it is dead.
        wait_until(lambda: HUNG_GATE in guard_state(web)["bypasses"], 10, "the guard to hear of the proxy's death")
        thief = web.popen(["socat", "-d", "-d", "TCP4-LISTEN:15001,bind=127.0.0.1,fork,reuseaddr", "SYSTEM:cat"])
        wait_until(lambda: ":15001 " in web.run(["ss", "-Hltn"]).stdout, 10, "the stranger on its port")
        require_refused(web, shop.address4)
        mesh.start(web)
        wait_until(lambda: "port-taken" in mesh.conditions(web), 30, "the port told", 0.2)
        wait_until(lambda: mesh.status(web)["capture"]["in_sync"], 10)
        for _ in range(3):
            require_refused(web, shop.address4)
    assert wire.packets() == [], "not a packet"
    assert "accepting connection" not in thief.text(), "nor does the stranger get one"
    assert mesh.status(web)["control_plane"]["connected"], "the hub is reached"
    wait_until(lambda: fetch(web, shop.address6), 20, "the other family, by the proxy's other port")

    thief.stop()
    wait_until(lambda: mesh.conditions(web) == [], 60, "the port taken back", 0.2)
    # What is told is told as soon as the port is the proxy's again; the rules follow some milliseconds later.
    wait_until(lambda: fetch(web, shop.address4), 10, "an answer")
    configure(web, "{}\n")
    wait_until(lambda: "everything" not in rules(web).lower(), 15, "only the mesh captured")


def guard_state(host: Host) -> dict[str, Any]:
    with contextlib.closing(GuardClient(host.root / "run/meshagent/guard.sock")) as guard:
        return guard.state()


def require_refused(host: Host, address: str) -> None:
    with pytest.raises(ConnectionRefusedError):
        host.connect(address, 80)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_who_dials_the_proxys_port_by_itself_meets_a_dead_end(mesh: Mesh, address: str) -> None:
    """Passed on it would come back for ever. The mark is the agent's: the rules let it through, as none would."""
    web = mesh.members["web"]
    with web.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, AGENT_MARK)
        client.settimeout(5)
        before = passed_on(web)
        client.connect((address, 15001))
        assert client.recv(1) == b""
        assert passed_on(web) == before


@pytest.mark.parametrize(
    ("mode", "sign"),
    [
        ("tproxy", "tproxy ip6 to"),
        ("redirect", "redirect to :15006"),
        ("auto, backend: iptables", "-j REDIRECT --to-ports 15006"),
    ],
    ids=["tproxy", "redirect", "iptables"],
)
def test_what_comes_in_passes_the_proxy_and_the_process_sees_who_calls(mesh: Mesh, mode: str, sign: str) -> None:
    web, shop = mesh.members["web"], mesh.lab.hosts["shop"]
    with shop.connect(web.address4, 80) as before:
        configure(web, f"capture: {{inbound: all, mode: {mode}}}\n")
        wait_until(lambda: sign in rules(web), 15, mode)
        start = passed_on(web, INBOUND)
        for source, address in zip(shop.addresses, web.addresses, strict=True):
            assert fetch(shop, address).startswith(source), "as if it had come directly"
        wait_until(lambda: passed_on(web, INBOUND) == start + 2, 5, "seen by the proxy")
        for port in (15006, 15002, 81):
            with pytest.raises(ConnectionRefusedError):
                shop.connect(web.address4, port)
        with shop.connect(web.address4, 80) as captured:
            wait_until(lambda: passed_on(web, INBOUND) == start + 3, 5, "seen by the proxy")
            configure(web, "{}\n")
            wait_until(lambda: "arriving" not in rules(web).lower(), 10, "nothing redirected")
            for connection in (before, captured):
                connection.sendall(b"GET /who HTTP/1.0\r\n\r\n")
                assert shop.address4.encode() in connection.makefile("rb").read()
        assert fetch(shop, web.address4).startswith(shop.address4)
        assert passed_on(web, INBOUND) == start + 3
        assert mesh.conditions(web) == []


def test_a_container_behind_a_named_bridge_uses_the_mesh(mesh: Mesh) -> None:
    web, container = mesh.members["web"], mesh.lab.host("container")
    for words in (
        "link add docker0 type bridge",
        f"link add veth1 type veth peer name inner netns {container.namespaces.holder}",
        "link set veth1 master docker0 up",
        "address add 172.30.0.1/24 dev docker0",
        "link set docker0 up",
    ):
        web.run(["ip", *words.split()])
    for words in (
        "address add 172.30.0.2/24 dev inner",
        "link set inner up",
        "route add 240.240.0.0/16 via 172.30.0.1",
    ):
        container.run(["ip", *words.split()])
    configure(web, "capture: {bridges: [docker0]}\n")
    wait_until(lambda: "chain bridged" in rules(web), 15, "containers captured")
    address = next(text for text in mesh.resolve(web, "cache.default.mesh.internal") if ":" not in text)
    assert container.run(["redis-cli", "-h", address, "ping"]).stdout == "PONG\n"
    assert f"addr={web.address4}:" in container.run(["redis-cli", "-h", address, "client", "list"]).stdout
    with pytest.raises(ConnectionRefusedError):
        container.connect(address, 80)
    configure(web, "{}\n")


def test_only_a_named_unit_is_in_the_mesh_and_stays_so_when_it_restarts(mesh: Mesh) -> None:
    web = mesh.members["web"]
    address = mesh.resolve(web, "cache.default.mesh.internal")[0]
    with units() as made:
        name = made.name("shop.service")
        configure(web, f"capture: {{units: [{name}]}}\n")
        wait_until(lambda: "not of a unit" in rules(web), 15, "nobody in the mesh")
        for _ in range(2):
            group = made.start("shop.service")
            ping = ["sh", "-c", f"echo $$ >{group}/cgroup.procs; exec redis-cli -h {address} ping"]
            wait_until(lambda ping=ping: web.run(ping, check=False).stdout == "PONG\n", 10, "the unit in the mesh")  # type: ignore[misc]
            with pytest.raises(ConnectionRefusedError):
                web.connect(address, 6379)
            made.stop("shop.service")
            wait_until(lambda: "goto mesh_of_units" not in rules(web), 10, "its rule gone")
    assert "capture-failed" not in mesh.conditions(web)
    configure(web, "{}\n")
    wait_until(lambda: mesh.redis(web, "cache") == "PONG", 10, "everybody in the mesh")
