"""Declared ports that docker publishes: dialled at an address of the host, forwarded to a container."""

import json
from collections.abc import Iterator
from itertools import product

import pytest

from meshagent.agent.capture import verify
from meshagent.lab.host import Host
from meshagent.model.policy import HostPolicy, RedirectReason
from meshagent.model.posture import PlaintextMode, Posture
from tests.agent.capture.stand import Connection, Server, Stand, service
from tests.agent.capture.test_chains_bridges import container
from tests.agent.capture.test_chains_bridges import own as address_in_bridge
from tests.agent.capture.test_chains_client_address import hand_over

pytestmark = pytest.mark.root

__all__ = ["container"]

SERVICES = (service("db", 6379),)
#: A network that this host forwards for others, by a DNAT of their own.
FOREIGN = {4: "198.51.100.7", 6: "2001:db8:7::7"}


@pytest.fixture
def published(stand: Stand, container: Host) -> Iterator[Server]:
    """As dockerd does, with its userland proxy; port 6379 is declared, 6381 is the same one of the container."""
    server = stand.serve(container, 6379, "container")
    stand.serve(container, 6380, "container")
    stand.serve(stand.host, 6379, "docker-proxy")
    for chain in (
        ["PREROUTING", "!", "-i", "docker0"],
        ["OUTPUT", "!", "-d", "127.0.0.0/8" if stand.family == 4 else "::1"],
    ):
        for port, inner in ((6379, 6379), (6380, 6380), (6381, 6379)):
            turn(stand, [*chain, "-m", "addrtype", "--dst-type", "LOCAL"], port, inner)
    yield server


def turn(stand: Stand, words: list[str], port: int, to: int) -> None:
    inner = address_in_bridge(stand)
    program = {4: "iptables", 6: "ip6tables"}[stand.family] + {"nft": "-nft", "iptables": "-legacy"}[stand.backend]
    where = f"{inner}:{to}" if stand.family == 4 else f"[{inner}]:{to}"
    rule = ["-p", "tcp", "--dport", str(port), "-j", "DNAT", "--to-destination", where]
    stand.host.run([program, "-w", "5", "-t", "nat", "-A", *words, *rule])


def callers(stand: Stand) -> set[tuple[str, int, int, bool]]:
    found = verify.callers(stand.guard.listing())
    return {(str(caller.address), caller.port, caller.count, caller.refused) for caller in found}


def test_permissive_counts_the_callers_of_a_published_port_and_leaves_them_alone(
    stand: Stand, published: Server
) -> None:
    stand.capture(Posture.PERMISSIVE, services=SERVICES)
    host, peer = stand.own(stand.host), stand.own(stand.peer)
    for _ in range(3):
        assert stand.dial(host, 6379, stand.peer).startswith(f"container {peer} ")
    assert stand.dial(host, 6380, stand.peer).startswith("container "), "not declared"
    assert callers(stand) == {(peer, 6379, 3, False)}


@pytest.mark.parametrize("container", [0, 1], ids=["plain", "br_netfilter"], indirect=True)
def test_strict_refuses_plain_text_to_a_published_port_and_only_that(
    stand: Stand, container: Host, published: Server
) -> None:
    host, peer = stand.own(stand.host), stand.own(stand.peer)
    stand.peer.run(["ip", "route", "add", FOREIGN[stand.family], "via", host])
    turn(stand, ["PREROUTING", "-d", FOREIGN[stand.family]], 6379, 6379)
    with stand.open(host, 6379, stand.peer) as before:
        stand.capture(Posture.STRICT, services=SERVICES)
        accepted = published.accepted
        with container_wire(container) as wire:
            for _ in range(2):
                with pytest.raises(ConnectionRefusedError):
                    stand.dial(host, 6379, stand.peer)
        assert wire.packets() == [], "nothing came to the container"
        assert before.says(), "what is open stays open"
        assert published.accepted == accepted

        assert stand.dial(host, 6380, stand.peer).startswith("container "), "another published port"
        assert stand.dial(host, 6381, stand.peer).startswith("container "), "the port that was dialled counts"
        assert stand.dial(FOREIGN[stand.family], 6379, stand.peer).startswith("container "), "not an address of ours"
        for own in (host, address_in_bridge(stand)):
            assert stand.dial(own, 6379).startswith("container "), "this host itself"
        with Connection(hand_over(stand, peer, 6379)) as handed:
            assert handed.greeting.startswith(f"container {peer} "), "the proxy, for a caller from the mesh"
            assert handed.says()
    assert callers(stand) == {(peer, 6379, 2, True)}


def container_wire(container: Host):  # type: ignore[no-untyped-def]
    """New connections to the container."""
    return container.capture("(tcp[tcpflags] & tcp-syn != 0) or (ip6[53] & 2 != 0)", interface="inner")


def test_a_published_port_that_the_mesh_wants_redirected_is_refused_in_the_kernel(
    stand: Stand, published: Server
) -> None:
    """It is docker's, so the proxy never gets it, and nobody would tell mutual TLS from plain text."""
    host, peer, accepted = stand.own(stand.host), stand.own(stand.peer), published.accepted
    policy = HostPolicy({6379: PlaintextMode.STRICT}, {6379: RedirectReason.MUTUAL_TLS})
    intent = stand.capture(Posture.PERMISSIVE, services=SERVICES, policy=policy)
    assert [each.port for each in intent.redirected] == [6379]
    with pytest.raises(ConnectionRefusedError):
        stand.dial(host, 6379, stand.peer)
    assert callers(stand) == {(peer, 6379, 1, True)} and published.accepted == accepted


def test_a_peer_of_the_mesh_gets_its_answers_whatever_counts_in_the_reverse_path_filter(
    stand: Stand, published: Server
) -> None:
    """IPv4 only; wg-quick sets src_valid_mark to 1. The container's answers come in from its bridge with a mark."""
    stand.capture(Posture.STRICT, services=SERVICES)
    for rp_filter, valid_mark in product((0, 1, 2), (0, 1)):
        settings = [f"net.ipv4.conf.{where}.rp_filter={rp_filter}" for where in ("all", "eth0", "docker0", "lo")]
        settings += [f"net.ipv4.conf.{where}.src_valid_mark={valid_mark}" for where in ("all", "eth0", "docker0", "lo")]
        stand.host.run(["sysctl", "-qw", *settings])
        with Connection(hand_over(stand, stand.own(stand.peer), 6379)) as handed:
            assert handed.greeting.startswith(f"container {stand.own(stand.peer)} "), settings
            assert handed.says(), settings
        assert stand.dial(stand.own(stand.host), 6380, stand.peer).startswith("container "), settings


def test_other_containers_reach_it_by_its_own_address_as_ever(stand: Stand, container: Host, published: Server) -> None:
    """By the host's address they are callers in plain text, as at ports at which this host itself listens."""
    host = stand.own(stand.host)
    for posture in (Posture.PERMISSIVE, Posture.STRICT):
        stand.capture(posture, services=SERVICES)
        assert stand.dial(address_in_bridge(stand), 6379, container).startswith("container ")
        assert stand.dial(stand.loopback, 6379).startswith("docker-proxy ")
        if posture is Posture.PERMISSIVE:
            assert stand.dial(host, 6379, container).startswith("docker-proxy ")
    with pytest.raises(ConnectionRefusedError):
        stand.dial(host, 6379, container)


def test_a_caller_that_comes_in_over_a_bridge_is_refused_though_without_an_answer(
    stand: Stand, published: Server
) -> None:
    """Hosts of virtual machines have their own address on one. Where bridges call netfilter the kernel sends its
    refusal past all NAT, so it comes from the container's address, and nobody knows it as theirs."""
    host = stand.host
    (link,) = json.loads(host.run(["ip", "-j", "address", "show", "dev", "eth0"]).stdout)
    mac = link["address"]
    keep = [f"{each['local']}/{each['prefixlen']}" for each in link["addr_info"] if each["scope"] == "global"]
    lines = ["link add br0 type bridge", f"link set br0 address {mac}", "address flush dev eth0 scope global"]
    lines += ["link set eth0 master br0", "link set br0 up", *(f"address add {each} dev br0 nodad" for each in keep)]
    for line in lines:
        host.run(["ip", *line.replace(" nodad", "" if "." in line.split()[2] else " nodad").split()])
    stand.capture(Posture.STRICT, services=SERVICES)
    address, before = stand.own(host), published.accepted
    assert stand.dial(address, 6380, stand.peer).startswith("container ")
    with pytest.raises((ConnectionRefusedError, TimeoutError)):
        stand.peer.connect(address, 6379, timeout=0.5)
    assert published.accepted == before
    with Connection(hand_over(stand, stand.own(stand.peer), 6379)) as handed:
        assert handed.says(), "the proxy, for a caller from the mesh"
