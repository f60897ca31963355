"""A host that hands more than the mesh to its proxy: what leaves it, over both families."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshagent.lab import Host, recipes, wait_until
from meshagent.model.marks import AGENT_MARK
from tests.lab.mesh import Mesh, open_mesh

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def mesh(envoy: Path) -> Iterator[Mesh]:
    """``web`` and ``cache`` in the mesh, ``shop`` a web server outside."""
    with open_mesh() as opened:
        web, cache, shop = (opened.lab.host(name) for name in ("web", "cache", "shop"))
        recipes.redis(cache)
        recipes.nginx(shop)
        opened.join_all((web, []), (cache, [("cache", 6379, "redis")]))
        yield opened


def configure(host: Host, text: str) -> None:
    path = host.root / "etc/meshagent/agent.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def rules(host: Host) -> str:
    return host.run(["nft", "list", "table", "inet", "meshagent"]).stdout


def passed_on(host: Host) -> int:
    """Connections to addresses outside the mesh that the host's proxy has passed on."""
    (admin,) = (host.root / "run/meshagent/proxy").glob("admin-*.sock")
    name = "cluster.PassthroughCluster.upstream_cx_total"
    answer = host.run(["curl", "-s", "--unix-socket", str(admin), f"http://envoy/stats?filter={name}"]).stdout
    return int(answer.removeprefix(f"{name}: "))


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
