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

BRIDGE, CONTAINER = {4: "172.17.0.1", 6: "fd17::1"}, {4: "172.17.0.2", 6: "fd17::2"}
NAME = "cache.default.mesh.internal"
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
PROGRAM = {4: "iptables", 6: "ip6tables"}


def rules(version: int) -> str:
    """What dockerd 20.10 to 27 writes for one container with one published port (IPv6: with ``ip6tables``)."""
    container, own, network = CONTAINER[version], ("127.0.0.0/8", "172.17.0.0/16"), ("::1/128", "fd17::/64")
    loopback, inside = own if version == 4 else network
    length, to = (32, container) if version == 4 else (128, f"[{container}]")
    return f"""\
*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d {loopback} -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s {inside} ! -o docker0 -j MASQUERADE
-A POSTROUTING -s {container}/{length} -d {container}/{length} -p tcp -m tcp --dport 6379 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 6379 -j DNAT --to-destination {to}:6379
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
-A DOCKER -d {container}/{length} ! -i docker0 -o docker0 -p tcp -m tcp --dport 6379 -j ACCEPT
-A DOCKER-USER -j RETURN
COMMIT
"""


@dataclass
class Published:
    """``version`` is the family that all hosts have."""

    version: int
    mesh: Mesh
    web: Host
    cache: Host
    outsider: Host
    container: Host

    @property
    def virtual(self) -> str:
        return self.mesh.resolve(self.web, NAME)[0]


@pytest.fixture(scope="module", params=[4, 6], ids=["ipv4", "ipv6"])
def published(request: pytest.FixtureRequest, envoy: Path) -> Iterator[Published]:
    with open_mesh((request.param,)) as mesh:
        web, cache, outsider, container = (mesh.lab.host(name) for name in ("web", "cache", "outsider", "container"))
        recipes.redis(container)
        recipes.redis(outsider)
        plug_in(cache, container, request.param)
        mesh.join_all((web, []), (cache, [("cache", 6379, "redis")]))
        yield Published(request.param, mesh, web, cache, outsider, container)


def plug_in(host: Host, container: Host, version: int) -> None:
    """As dockerd does: a bridge, a pair of interfaces, forwarding, the userland proxy, the rules."""
    length, ip = (16, "") if version == 4 else (64, "-6 ")
    nodad = "" if version == 4 else " nodad"
    for words in (
        "link add docker0 type bridge",
        f"address add {BRIDGE[version]}/{length} dev docker0{nodad}",
        "link set docker0 up",
        f"link add veth0 type veth peer name docker0c netns {container.namespaces.holder}",
        "link set veth0 master docker0 up",
    ):
        host.run(["ip", *words.split()])
    host.run(["sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"])
    for words in (
        "link set eth0 down",
        f"address add {CONTAINER[version]}/{length} dev docker0c{nodad}",
        "link set docker0c up",
        f"{ip}route replace default via {BRIDGE[version]}",
    ):
        container.run(["ip", *words.split()])
    host.run([f"{PROGRAM[version]}-nft-restore", "--noflush"], input=rules(version))
    where = f"TCP{version}-LISTEN:6379,fork,reuseaddr{',ipv6only=1' if version == 6 else ''}"
    to = CONTAINER[version] if version == 4 else f"[{CONTAINER[version]}]"
    host.popen(["socat", where, f"TCP{version}:{to}:6379"], log="docker-proxy")
    wait_until(lambda: redis(host, LOOPBACK[version]) == "PONG")


def redis(host: Host, address: str, *words: str) -> str:
    argv = ["timeout", "5", "redis-cli", "-h", address, *(words or ("ping",))]
    return host.run(argv, check=False).stdout.strip()


def test_it_is_reached_by_mesh_name_by_its_host_and_from_outside(published: Published) -> None:
    mesh, cache = published.mesh, published.cache
    assert mesh.redis(published.web, "cache") == "PONG"
    assert redis(published.outsider, cache.address) == "PONG"
    assert redis(published.web, cache.address) == "PONG"
    for each in (cache.address, LOOPBACK[published.version], CONTAINER[published.version]):
        assert redis(cache, each) == "PONG"


def test_the_container_sees_its_callers_own_addresses(published: Published) -> None:
    seen = redis(published.outsider, published.cache.address, "client", "list")
    assert f"addr={peer(published.outsider)}:" in seen
    seen = redis(published.web, published.virtual, "client", "list")
    assert f"addr={peer(published.web)}:" in seen


def peer(host: Host) -> str:
    """As Redis writes it."""
    return f"[{host.address}]" if ":" in host.address else host.address


def test_strict_refuses_plain_text_from_outside_and_nothing_else(published: Published) -> None:
    mesh, cache, outsider = published.mesh, published.cache, published.outsider
    with outsider.connect(cache.address, 6379) as open_before, mesh.busy(published.web, "cache") as busy:
        assert mesh.status(cache)["plaintext_callers"], "permissive counts"
        cache.meshagent("posture", "strict", "--confirm", "0")
        wait_until(lambda: mesh.status(cache)["posture"] == "strict" and mesh.status(cache)["capture"]["in_sync"], 10)
        wire = published.container.capture(f"src host {outsider.address}", "docker0c")
        with wire, pytest.raises(ConnectionRefusedError):
            outsider.connect(cache.address, 6379)
        assert wire.packets() == [], "nothing came to the container"
        refused = [caller["address"] for caller in mesh.status(cache)["plaintext_callers"] if caller["refused"]]
        assert refused == [outsider.address]
        seen = redis(published.web, published.virtual, "client", "list")
        assert f"addr={peer(published.web)}:" in seen, "peers of the mesh, seen as themselves"
        for each in (cache.address, LOOPBACK[published.version], CONTAINER[published.version]):
            assert redis(cache, each) == "PONG", "the host itself"
        open_before.sendall(b"PING\r\n")
        assert open_before.recv(7) == b"+PONG\r\n"
        busy.goes_on()
    cache.meshagent("posture", "permissive", "--confirm", "0")
    wait_until(lambda: redis(outsider, cache.address) == "PONG", 10)


def test_containers_are_not_captured(published: Published) -> None:
    """They reach what they reached, and have no mesh addresses."""
    virtual = published.virtual
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
