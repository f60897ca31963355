"""Listeners that only hosts have that asked for them."""

import json
from dataclasses import replace

import pytest
from envoy.config.listener.v3.listener_pb2 import Listener

from meshagent.agent.relay.taps import doors_of
from meshagent.hub.snapshot.doors import listeners
from meshagent.hub.snapshot.view import Scope, SortedPort
from meshagent.hub.state import MUTUAL_TLS_LABEL, MeshState, PeerAuthenticationView
from meshagent.model.doors import ON_REQUEST, PORT_DOORS, Door, PortDoor
from meshagent.model.posture import PlaintextMode, Posture
from meshagent.model.service import ServiceProtocol
from meshagent.protocol.types import CDS, HOST_POLICY, LDS
from tests.hub.snapshot.meshes import DB1, MESH, MYSQL, ORDERS, WEB
from tests.hub.snapshot.test_build import built, shown

HOST = replace(WEB, name="asks")


def names(*doors: Door) -> tuple[set[str], set[str]]:
    """Listeners and clusters that a host has more with these doors."""
    state = replace(MESH, hosts=(WEB, replace(HOST, doors=frozenset(doors)), replace(HOST, name="not")))
    builder = built(state)
    asks, other = builder.snapshot("asks"), builder.snapshot("not")
    return set(asks[LDS]) - set(other[LDS]), set(asks[CDS]) - set(other[CDS])


def made(*doors: Door, family: int = 4, ports: tuple[SortedPort, ...] = ()) -> list[Listener]:
    return list(listeners(Scope("mesh.internal", (family,), True, (), frozenset(doors), ports)))


@pytest.mark.parametrize("door", sorted(ON_REQUEST))
@pytest.mark.parametrize("family", [4, 6])
def test_the_agent_knows_each_door_by_its_listener(door: Door, family: int) -> None:
    (one,) = made(door, family=family)
    assert doors_of(one) == {(door, family)}


@pytest.mark.parametrize("door", sorted(PORT_DOORS))
def test_the_agent_knows_the_ports_that_are_sorted_and_whether_plain_text_goes_on(door: Door) -> None:
    ports = (
        SortedPort("a", 3306, ServiceProtocol.MYSQL, plain=True),
        SortedPort("a", 80, ServiceProtocol.HTTP, plain=False),
    )
    known = {PortDoor(door, 4, 3306, plain=True), PortDoor(door, 4, 80, plain=False)}
    (alone,) = made(door, ports=ports)
    assert doors_of(alone) == {(door, 4), *known}
    everything = Door.INBOUND_TPROXY if door is Door.PORTS_TPROXY else Door.INBOUND_REDIRECT
    for some in (ports, ports[:1]):
        (one,) = made(door, everything, ports=some)
        kept = {each for each in known if each.port in {port.port for port in some}}
        assert doors_of(one) == {(door, 4), (everything, 4), *kept}, "both at once, on the one port"
    assert doors_of(made(door, everything)[0]) == {(everything, 4)}, "nothing is waited for"


def test_ports_come_and_go_without_touching_the_filters_of_the_listener() -> None:
    """Envoy replaces a listener whose filters differ as a whole, and closes its connections when it has drained."""
    one, other = (
        made(Door.PORTS_TPROXY, ports=(SortedPort("a", 3306, ServiceProtocol.TCP, plain=True),))[0],
        made(Door.PORTS_TPROXY)[0],
    )
    for each in (one, other):
        each.ClearField("filter_chains")
    assert one == other


def labelled(*doors: Door, posture: Posture = Posture.PERMISSIVE, strict: bool = False) -> MeshState:
    """Host db1 asks for ``doors`` and has the label on its MySQL, web on its HTTP service."""
    services = tuple(
        replace(s, endpoints=tuple(replace(e, labels=(*e.labels, MUTUAL_TLS_LABEL)) for e in s.endpoints))
        if s in (MYSQL, ORDERS)
        else s
        for s in MESH.services
    )
    hosts = tuple(replace(h, doors=frozenset(doors), posture=posture) if h in (DB1, WEB) else h for h in MESH.hosts)
    policy = (PeerAuthenticationView("default", "strict", mode=PlaintextMode.STRICT),) if strict else ()
    return replace(MESH, services=services, hosts=hosts, peer_authentications=policy)


def sorted_ports(state: MeshState, host: str = "db1") -> set[tuple[int, bool]]:
    found = built(state).snapshot(host)[LDS]
    each = (doors_of(Listener.FromString(entry.body)) for entry in found.values())
    return {(door.port, door.plain) for doors in each for door in doors if isinstance(door, PortDoor)}


def test_istios_label_on_a_workload_has_its_port_redirected_and_sorted() -> None:
    state = labelled(Door.PORTS_TPROXY)
    told = shown(HOST_POLICY, built(state).snapshot("db1")[HOST_POLICY]["db1"])
    assert told == {"ports": [{"port": 3306, "redirect": "REDIRECT_MUTUAL_TLS"}]}
    assert sorted_ports(state) == {(3306, True)}
    assert sorted_ports(labelled()) == set(), "the host didn't ask for it yet"
    assert sorted_ports(labelled(Door.PORTS_TPROXY, posture=Posture.OUTBOUND)) == set(), "it lets nobody in"


def test_the_policy_of_the_mesh_or_the_hosts_own_posture_closes_the_port_to_plain_text() -> None:
    assert sorted_ports(labelled(Door.PORTS_TPROXY, strict=True)) == {(3306, False)}
    assert sorted_ports(labelled(Door.PORTS_TPROXY, posture=Posture.STRICT)) == {(3306, False)}


def test_http_gets_the_callers_identity_and_tcp_its_bytes() -> None:
    web = built(labelled(Door.PORTS_TPROXY)).snapshot("web")
    chains = {
        chain["name"]: chain for chain in shown(LDS, web[LDS]["virtualInbound"])["filter_chains"] if "name" in chain
    }
    text = json.dumps(chains["8080 mutual TLS"])
    assert "SANITIZE_SET" in text and "InboundPassthroughClusterHttp" in text
    assert {"InboundPassthroughCluster", "InboundPassthroughClusterHttp"} <= set(web[CDS])
    assert "http_connection_manager" not in json.dumps(chains["8080 plain text"])


def test_only_the_host_that_asked_gets_them() -> None:
    assert names() == (set(), set())
    assert names(Door.BRIDGES) == ({"virtualOutboundBridges", "virtualOutboundBridges6"}, set())
    listeners, clusters = names(Door.INBOUND_TPROXY, Door.INBOUND_REDIRECT)
    assert listeners == {f"virtualInbound{mode}{v}" for mode in ("", "Redirect") for v in ("", "6")}
    assert clusters == {"InboundPassthroughCluster"}


def test_what_comes_in_is_never_handed_to_a_listener_that_leads_out() -> None:
    """One for a claimed address of this very host would turn a stranger's connection into one of this host's."""
    for door in ON_REQUEST - {Door.BRIDGES}:
        assert not made(door)[0].use_original_dst.value
    assert made(Door.BRIDGES)[0].use_original_dst.value


def test_who_dials_such_a_port_itself_meets_a_dead_end() -> None:
    snapshot = built(replace(MESH, hosts=(replace(HOST, doors=ON_REQUEST),))).snapshot("asks")
    found = {name: shown(LDS, entry) for name, entry in snapshot[LDS].items() if name.startswith("virtual")}
    assert len(found) == 8
    for name, each in found.items():
        ends = str(each["filter_chains"][0]["filters"])
        assert "BlackHoleCluster" in ends, name
        port = each["address"]["socket_address"]["port_value"]
        match = each["filter_chains"][0].get("filter_chain_match", {})
        assert match in ({}, {"destination_port": port}), name
        assert match or "default_filter_chain" not in each, name
