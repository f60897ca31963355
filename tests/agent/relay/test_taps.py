"""What the agent reads out of the configuration, and what it leaves out."""

import pytest
from envoy.config.core.v3.address_pb2 import SocketAddress
from envoy.config.core.v3.base_pb2 import INBOUND
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.filters.network.tcp_proxy.v3.tcp_proxy_pb2 import TcpProxy

from meshagent.agent.relay.taps import Taps, doors_of, gate_of, host_policy, mesh_addresses, name_table
from meshagent.hub.snapshot import doors, listeners
from meshagent.hub.snapshot.view import Scope, SortedPort
from meshagent.model.address import MeshAddress, parse_ip
from meshagent.model.doors import Door, PortDoor
from meshagent.model.names import NameTable
from meshagent.model.policy import RedirectReason
from meshagent.model.posture import PlaintextMode
from meshagent.model.service import ServiceProtocol
from meshagent.protocol.entry import Entry
from meshagent.protocol.pb.istio_nds_pb2 import NameTable as NameTableMessage
from meshagent.protocol.pb.meshagent_v1_pb2 import HostPolicy as HostPolicyMessage
from meshagent.protocol.types import LDS
from tests.fakes.envoy_resources import entry, gate, tcp_listener


def listener_at(address: str, port: int, bound: bool = False) -> Listener:
    return tcp_listener("l", port, "c", address=address, bound=bound)


@pytest.mark.parametrize("address", ["240.240.0.5", "10.1.2.3", "2001:2::5"])
def test_an_unbound_outbound_listener_is_a_mesh_address(address: str) -> None:
    ip = parse_ip(address)
    assert ip
    assert mesh_addresses(listener_at(address, 3306)) == (MeshAddress(ip, 3306),)


@pytest.mark.parametrize(
    "other",
    [
        listener_at("10.1.2.3", 3306, bound=True),
        listener_at("127.0.0.1", 80),
        listener_at("::1", 80),
        listener_at("0.0.0.0", 80),
        listener_at("169.254.169.254", 80),
        listener_at("224.0.0.1", 80),
        listener_at("not an address", 80),
        listener_at("10.1.2.3", 0),
        listener_at("10.1.2.3", 70000),
        Listener(),
    ],
)
def test_nothing_else_is(other: Listener) -> None:
    assert mesh_addresses(other) == ()


def test_an_inbound_listener_is_not_captured() -> None:
    listener = tcp_listener("l", 80, "c", address="10.1.2.3", bound=False)
    listener.traffic_direction = INBOUND
    assert mesh_addresses(listener) == ()


def test_one_listener_may_serve_several_addresses_and_each_is_checked() -> None:
    listener = listener_at("240.240.0.5", 3306)
    for other in ("2001:2::5", "169.254.169.254", "::1", "junk"):
        listener.additional_addresses.add().address.socket_address.CopyFrom(
            SocketAddress(address=other, port_value=3306)
        )
    assert [str(each.ip) for each in mesh_addresses(listener)] == ["240.240.0.5", "2001:2::5"]


def test_addresses_come_and_go_with_the_listeners_in_use() -> None:
    taps = Taps()
    one = entry(tcp_listener("one", 80, "c", address="240.240.0.1", bound=False))
    two = entry(tcp_listener("two", 80, "c", address="240.240.0.2", bound=False))
    taps.take(LDS, {"one": one, "two": two, "gate": entry(gate())})
    assert {str(a.ip) for a in taps.addresses.value} == {"240.240.0.1", "240.240.0.2"}
    taps.take(LDS, {"two": two, "gate": entry(gate()), "unreadable": Entry("v", b"\xff\xff")})
    assert {str(a.ip) for a in taps.addresses.value} == {"240.240.0.2"}


def test_what_was_read_ahead_counts_when_it_is_in_use_and_only_in_the_version_that_is() -> None:
    taps = Taps()
    old, new, door = entry(listener_at("240.240.0.5", 6379)), entry(listener_at("240.240.0.6", 6379)), entry(gate())
    taps.read_ahead({"cache": old, "gate": door})
    assert taps.addresses.value == frozenset()
    taps.take(LDS, {"cache": new, "gate": door})
    assert {str(each.ip) for each in taps.addresses.value} == {"240.240.0.6"}


def test_addresses_of_a_family_count_only_while_the_proxy_listens_where_they_are_sent() -> None:
    taps = Taps()
    one = tcp_listener("one", 80, "c", address="240.240.0.1", bound=False)
    one.additional_addresses.add().address.socket_address.CopyFrom(SocketAddress(address="2001:2::1", port_value=80))
    both = {"one": entry(one), "six": entry(listener_at("2001:2::2", 80))}
    taps.take(LDS, both)
    assert taps.addresses.value == frozenset()
    taps.take(LDS, {**both, "gate": entry(gate())})
    assert {str(a.ip) for a in taps.addresses.value} == {"240.240.0.1"}
    assert {str(a.ip) for a in taps.unserved.value} == {"2001:2::1", "2001:2::2"}
    taps.take(LDS, {**both, "gate": entry(gate()), "gate6": entry(gate(address="::1"))})
    assert len(taps.addresses.value) == 3


def test_only_a_listener_for_redirected_connections_on_loopback_is_a_gate() -> None:
    plain = gate()
    plain.use_original_dst.value = False
    assert gate_of(gate()) == 4
    assert gate_of(gate(address="::1")) == 6
    assert not any(gate_of(other) for other in (plain, gate(15002), gate(address="10.0.0.1"), gate(address="x")))


def test_a_gate_that_passes_on_what_is_for_nobody_is_a_door_to_everywhere() -> None:
    for version in (4, 6):
        listener = listeners.virtual_outbound(version)
        assert doors_of(listener) == {(Door.OUTBOUND, version), (Door.PASSTHROUGH, version)}
        listener.default_filter_chain.filters[0].typed_config.Pack(TcpProxy(cluster="BlackHoleCluster"))
        assert doors_of(listener) == {(Door.OUTBOUND, version)}
        listener.ClearField("default_filter_chain")
        assert doors_of(listener) == {(Door.OUTBOUND, version)}


def test_doors_come_and_go_with_the_listeners_in_use() -> None:
    taps = Taps()
    out4, out6 = entry(listeners.virtual_outbound(4)), entry(listeners.virtual_outbound(6))
    taps.take(LDS, {"virtualOutbound": out4, "virtualOutbound6": out6})
    assert {(Door.PASSTHROUGH, 4), (Door.PASSTHROUGH, 6)} < taps.doors.value
    taps.take(LDS, {"virtualOutbound": out4})
    assert taps.doors.value == {(Door.OUTBOUND, 4), (Door.PASSTHROUGH, 4)}


def test_names_are_lower_case_and_a_bad_one_is_left_out_alone() -> None:
    message = NameTableMessage()
    message.table["DB.default.mesh.internal."].ips.extend(["240.240.0.5", "2001:2::5", "junk"])
    message.table["bad name"].ips.append("240.240.0.6")
    message.table["empty.default.mesh.internal"].ips.append("junk")
    table = name_table([message.SerializeToString()])
    assert set(table.entries) == {"db.default.mesh.internal"}
    assert [str(ip) for ip in table.entries["db.default.mesh.internal"].addresses] == ["240.240.0.5", "2001:2::5"]
    assert name_table([b"\xff"]) == NameTable()


def test_of_two_opinions_on_a_port_strict_wins_and_impossible_ports_are_left_out() -> None:
    message = HostPolicyMessage()
    for port, strict in ((80, True), (80, False), (81, False), (0, True), (99999, True)):
        message.ports.add(port=port, strict=strict)
    assert host_policy([message.SerializeToString()]).plaintext == {
        80: PlaintextMode.STRICT,
        81: PlaintextMode.PERMISSIVE,
    }


def test_ports_that_the_mesh_wants_redirected_are_read_and_what_is_not_known_yet_is_left_out() -> None:
    message = HostPolicyMessage(
        ports=[
            HostPolicyMessage.Port(port=3306, strict=True, redirect=HostPolicyMessage.REDIRECT_MUTUAL_TLS),
            HostPolicyMessage.Port(port=80),
            HostPolicyMessage.Port(port=81, redirect=77),  # type: ignore[arg-type]
            HostPolicyMessage.Port(port=0, redirect=HostPolicyMessage.REDIRECT_MUTUAL_TLS),
        ]
    )
    found = host_policy([message.SerializeToString()])
    assert found.redirect == {3306: RedirectReason.MUTUAL_TLS}
    assert found.plaintext[3306] is PlaintextMode.STRICT


def test_sorted_ports_follow_the_listener_that_is_in_use() -> None:
    taps, port = Taps(), SortedPort("db", 3306, ServiceProtocol.MYSQL, plain=True)
    scope = Scope("mesh.internal", (4,), True, (), frozenset({Door.PORTS_TPROXY}), (port,))
    (listener,) = doors.listeners(scope)
    taps.take(LDS, {"virtualInbound": entry(listener)})
    assert taps.ports.value == {PortDoor(Door.PORTS_TPROXY, 4, 3306, plain=True)}
    assert taps.doors.value == {(Door.PORTS_TPROXY, 4)}
    taps.take(LDS, {})
    assert taps.ports.value == frozenset()
