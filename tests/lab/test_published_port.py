"""A port that dockerd publishes works as a service, from inside and outside the mesh; containers are left alone.

The rules are those dockerd writes (iptables, nft flavour) for ``docker run -p 6379:6379``; the container is a host of
the lab behind a bridge.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from meshagent.lab import Host, recipes, wait_until
from tests.lab.firewalls import require_undisturbed, theirs
from tests.lab.mesh import Mesh, open_mesh

#: Real programs by the dozen: 15 s of a quiet machine, and nothing that may hang for long.
pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

BRIDGE, CONTAINER = "172.17.0.1", "172.17.0.2"

#: What dockerd 20.10 to 27 writes for one container with one published port.
RULES = f"""\
*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A POSTROUTING -s {CONTAINER}/32 -d {CONTAINER}/32 -p tcp -m tcp --dport 6379 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 6379 -j DNAT --to-destination {CONTAINER}:6379
COMMIT
*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A DOCKER -d {CONTAINER}/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 6379 -j ACCEPT
-A DOCKER-USER -j RETURN
COMMIT
"""


@dataclass
class Published:
    mesh: Mesh
    web: Host
    cache: Host
    outsider: Host
    container: Host


@pytest.fixture(scope="module")
def published(envoy: Path) -> Iterator[Published]:
    with open_mesh((4,)) as mesh:
        web, cache, outsider, container = (mesh.lab.host(name) for name in ("web", "cache", "outsider", "container"))
        recipes.redis(container)
        recipes.redis(outsider)
        plug_in(cache, container)
        mesh.join_all((web, []), (cache, [("cache", 6379, "redis")]))
        yield Published(mesh, web, cache, outsider, container)


def plug_in(host: Host, container: Host) -> None:
    """As dockerd does: a bridge, a pair of interfaces, forwarding, the userland proxy, the rules."""
    host.run(
        [
            "sh",
            "-ec",
            f"""
        ip link add docker0 type bridge; ip addr add {BRIDGE}/16 dev docker0; ip link set docker0 up
        ip link add veth0 type veth peer name docker0c netns {container.namespaces.holder}
        ip link set veth0 master docker0 up; echo 1 > /proc/sys/net/ipv4/ip_forward""",
        ]
    )
    container.run(
        [
            "sh",
            "-ec",
            f"""
        ip link set eth0 down; ip addr add {CONTAINER}/16 dev docker0c; ip link set docker0c up
        ip route replace default via {BRIDGE}""",
        ]
    )
    host.run(["iptables-nft-restore", "--noflush"], input=RULES)
    host.popen(["socat", "TCP-LISTEN:6379,fork,reuseaddr", f"TCP:{CONTAINER}:6379"], log="docker-proxy")
    wait_until(lambda: redis(host, "127.0.0.1") == "PONG")


def redis(host: Host, address: str, *words: str) -> str:
    argv = ["timeout", "5", "redis-cli", "-h", address, *(words or ("ping",))]
    return host.run(argv, check=False).stdout.strip()


def test_it_is_reached_by_mesh_name_by_its_host_and_from_outside(published: Published) -> None:
    mesh, cache = published.mesh, published.cache
    assert mesh.redis(published.web, "cache") == "PONG"
    assert redis(published.outsider, cache.address) == "PONG"
    assert redis(published.web, cache.address) == "PONG"
    for address in (cache.address, "127.0.0.1", CONTAINER):
        assert redis(cache, address) == "PONG"


def test_the_container_sees_its_callers_own_addresses(published: Published) -> None:
    seen = redis(published.outsider, published.cache.address, "client", "list")
    assert f"addr={published.outsider.address}:" in seen
    seen = published.mesh.redis(published.web, "cache", "client", "list")
    assert f"addr={published.web.address}:" in seen


def test_containers_are_not_captured(published: Published) -> None:
    """They reach what they reached, and have no mesh addresses."""
    virtual = published.mesh.resolve(published.web, "cache.default.mesh.internal")[0]
    assert redis(published.container, published.outsider.address) == "PONG"
    with pytest.raises(OSError):
        published.container.connect(virtual, 6379, timeout=1)


def test_dockers_rules_are_not_disturbed_by_postures_and_leave(published: Published) -> None:
    """The last one: afterwards the host is out of the mesh."""
    mesh, cache = published.mesh, published.cache
    before = theirs(cache, counted=True)
    for posture in ("strict", "permissive"):
        cache.meshagent("posture", posture, "--confirm", "0")
        wait_until(lambda wanted=posture: mesh.status(cache)["posture"] == wanted, 10)  # type: ignore[misc]
    assert mesh.redis(published.web, "cache") == "PONG"
    mesh.leave(cache)
    require_undisturbed(before, theirs(cache, counted=True))
    assert redis(published.outsider, cache.address) == "PONG"
