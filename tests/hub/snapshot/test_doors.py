"""Listeners that only hosts have that asked for them."""

from dataclasses import replace

import pytest

from meshagent.agent.relay.taps import doors_of
from meshagent.hub.snapshot.doors import listener
from meshagent.model.doors import ON_REQUEST, Door
from meshagent.protocol.types import CDS, LDS
from tests.hub.snapshot.meshes import MESH, WEB
from tests.hub.snapshot.test_build import built, shown

HOST = replace(WEB, name="asks")


def names(*doors: Door) -> tuple[set[str], set[str]]:
    """Listeners and clusters that a host has more with these doors."""
    state = replace(MESH, hosts=(WEB, replace(HOST, doors=frozenset(doors)), replace(HOST, name="not")))
    builder = built(state)
    asks, other = builder.snapshot("asks"), builder.snapshot("not")
    return set(asks[LDS]) - set(other[LDS]), set(asks[CDS]) - set(other[CDS])


@pytest.mark.parametrize("door", sorted(ON_REQUEST))
@pytest.mark.parametrize("family", [4, 6])
def test_the_agent_knows_each_door_by_its_listener(door: Door, family: int) -> None:
    assert doors_of(listener(door, family)) == {(door, family)}


def test_only_the_host_that_asked_gets_them() -> None:
    assert names() == (set(), set())
    assert names(Door.BRIDGES) == ({"virtualOutboundBridges", "virtualOutboundBridges6"}, set())
    listeners, clusters = names(Door.INBOUND_TPROXY, Door.INBOUND_REDIRECT)
    assert listeners == {f"virtualInbound{mode}{v}" for mode in ("", "Redirect") for v in ("", "6")}
    assert clusters == {"InboundPassthroughCluster"}


def test_what_comes_in_is_never_handed_to_a_listener_that_leads_out() -> None:
    """One for a claimed address of this very host would turn a stranger's connection into one of this host's."""
    for door in (Door.INBOUND_TPROXY, Door.INBOUND_REDIRECT):
        assert not listener(door, 4).use_original_dst.value
    assert listener(Door.BRIDGES, 4).use_original_dst.value


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
