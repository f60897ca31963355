"""Who is tried first, and what is said of whom."""

from dataclasses import replace

import pytest

from meshagent.hub.snapshot.endpoints import load_assignment, ranks
from meshagent.model.service import ServiceProtocol as Protocol
from tests.hub.snapshot.meshes import DB1, DB2, MYSQL, OUTSIDE, endpoint

ONE, TWO = endpoint(DB1, 1, 1), endpoint(DB2, 1, 1)


@pytest.mark.parametrize("protocol", [Protocol.MYSQL, Protocol.POSTGRES, Protocol.REDIS])
def test_databases_are_active_and_standby_never_turn_by_turn(protocol: Protocol) -> None:
    assert ranks([ONE, TWO], protocol) == [(0, ONE), (1, TWO)]
    assert ranks([replace(ONE, priority=1), TWO], protocol) == [(0, TWO), (1, replace(ONE, priority=1))]


@pytest.mark.parametrize("protocol", [Protocol.HTTP, Protocol.TCP, Protocol.MONGO])
def test_others_share_the_load_among_equals_and_keep_declared_standbys(protocol: Protocol) -> None:
    assert ranks([ONE, TWO], protocol) == [(0, ONE), (0, TWO)]
    assert [rank for rank, _ in ranks([ONE, replace(TWO, priority=7)], protocol)] == [0, 1]


def test_an_unhealthy_endpoint_stays_listed_as_such() -> None:
    sick = replace(MYSQL, endpoints=tuple(replace(e, healthy=False) for e in MYSQL.endpoints))
    listed = [e for group in load_assignment(sick, MYSQL.ports[0]).endpoints for e in group.lb_endpoints]
    assert [e.health_status for e in listed] == [2, 2]  # UNHEALTHY


def test_mesh_hosts_are_named_at_the_hbone_port_with_their_other_family_beside() -> None:
    first = load_assignment(MYSQL, MYSQL.ports[0]).endpoints[0].lb_endpoints[0].endpoint
    assert (first.address.socket_address.address, first.address.socket_address.port_value) == ("10.0.0.3", 15008)
    assert [a.address.socket_address.address for a in first.additional_addresses] == ["fd00::3"]


def test_hosts_outside_are_named_at_the_port_of_the_process() -> None:
    first = load_assignment(OUTSIDE, OUTSIDE.ports[0]).endpoints[0].lb_endpoints[0].endpoint
    assert first.address.socket_address.port_value == 8443


def test_locality_is_region_zone_and_sub_zone() -> None:
    placed = replace(MYSQL, endpoints=(replace(MYSQL.endpoints[0], locality="dc1/rack2"),))
    locality = load_assignment(placed, MYSQL.ports[0]).endpoints[0].locality
    assert (locality.region, locality.zone, locality.sub_zone) == ("dc1", "rack2", "")
