"""What the agent reads out of the configuration, and what it leaves out."""

import pytest
from envoy.config.core.v3.base_pb2 import INBOUND

from meshagent.agent.relay.taps import Taps, host_policy, mesh_address, name_table
from meshagent.model.address import MeshAddress, parse_ip
from meshagent.model.names import NameTable
from meshagent.model.posture import PlaintextMode
from meshagent.protocol.pb.istio_nds_pb2 import NameTable as NameTableMessage
from meshagent.protocol.pb.meshagent_v1_pb2 import HostPolicy as HostPolicyMessage
from meshagent.protocol.types import LDS
from tests.fakes.envoy_resources import entry, tcp_listener


def body(address: str, port: int, bound: bool = False) -> bytes:
    return tcp_listener("l", port, "c", address=address, bound=bound).SerializeToString()


@pytest.mark.parametrize("address", ["240.240.0.5", "10.1.2.3", "2001:2::5"])
def test_an_unbound_outbound_listener_is_a_mesh_address(address: str) -> None:
    ip = parse_ip(address)
    assert ip
    assert mesh_address(body(address, 3306)) == MeshAddress(ip, 3306)


@pytest.mark.parametrize(
    "other",
    [
        body("10.1.2.3", 3306, bound=True),
        body("127.0.0.1", 80),
        body("::1", 80),
        body("0.0.0.0", 80),
        body("169.254.169.254", 80),
        body("224.0.0.1", 80),
        body("not an address", 80),
        body("10.1.2.3", 0),
        body("10.1.2.3", 70000),
        b"\xff\xff",
        b"",
    ],
)
def test_nothing_else_is(other: bytes) -> None:
    assert mesh_address(other) is None


def test_an_inbound_listener_is_not_captured() -> None:
    listener = tcp_listener("l", 80, "c", address="10.1.2.3", bound=False)
    listener.traffic_direction = INBOUND
    assert mesh_address(listener.SerializeToString()) is None


def test_addresses_come_and_go_with_the_listeners_in_use() -> None:
    taps = Taps()
    one = entry(tcp_listener("one", 80, "c", address="240.240.0.1", bound=False))
    two = entry(tcp_listener("two", 80, "c", address="240.240.0.2", bound=False))
    taps.take(LDS, {"one": one, "two": two})
    assert {str(a.ip) for a in taps.addresses.value} == {"240.240.0.1", "240.240.0.2"}
    taps.take(LDS, {"two": two})
    assert {str(a.ip) for a in taps.addresses.value} == {"240.240.0.2"}


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
