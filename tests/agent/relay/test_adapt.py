"""The seam for other dialects."""

import asyncio
from pathlib import Path

from envoy.config.core.v3.address_pb2 import Address, SocketAddress
from envoy.config.endpoint.v3.endpoint_components_pb2 import Endpoint
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.config.listener.v3.listener_pb2 import Listener
from google.protobuf.wrappers_pb2 import UInt32Value

from meshagent.agent.relay.adapt import identity, without_ipv6
from meshagent.agent.relay.cache import Cache
from meshagent.agent.relay.relay import Relay
from meshagent.protocol.entry import Entry
from meshagent.protocol.subscriber import Received
from meshagent.protocol.types import CDS, EDS, LDS
from meshagent.runtime.clock import SystemClock
from tests.agent.recorder import Recorder
from tests.fakes.envoy_resources import eds_cluster, entry, tcp_listener


def test_the_hubs_resources_pass_untouched() -> None:
    original = Entry("1", b"x")
    assert identity(CDS, "a", original) is original


def test_where_the_kernel_has_no_ipv6_the_proxy_is_told_of_none() -> None:
    listener = tcp_listener("db", 3306, "db", address="240.240.0.5", bound=False)
    listener.additional_addresses.add().address.socket_address.CopyFrom(at("2001:2::5"))
    original = entry(listener)
    adapted = without_ipv6(LDS, "db", original)
    assert adapted.version == original.version
    assert Listener.FromString(adapted.body) == tcp_listener("db", 3306, "db", address="240.240.0.5", bound=False)

    assignment = ClusterLoadAssignment(cluster_name="db")
    for addresses in (["10.0.0.1", "fd00::1"], ["fd00::2", "10.0.0.2"], ["fd00::3"]):
        first, *others = [Address(socket_address=at(address)) for address in addresses]
        endpoint = Endpoint(address=first, hostname=addresses[0])
        endpoint.additional_addresses.extend(Endpoint.AdditionalAddress(address=each) for each in others)
        assignment.endpoints.add().lb_endpoints.add(endpoint=endpoint, load_balancing_weight=UInt32Value(value=7))
    adapted = without_ipv6(EDS, "db", entry(assignment))
    groups = ClusterLoadAssignment.FromString(adapted.body).endpoints
    found = [each for group in groups for each in group.lb_endpoints]
    assert [each.endpoint.address.socket_address.address for each in found] == ["10.0.0.1", "10.0.0.2"]
    assert not any(each.endpoint.additional_addresses for each in found)
    assert [(each.endpoint.hostname, each.load_balancing_weight.value) for each in found] == [
        ("10.0.0.1", 7),
        ("fd00::2", 7),
    ]


def test_what_has_no_ipv6_in_it_stays_as_it_is() -> None:
    for type_url, message in (
        (LDS, tcp_listener("db", 3306, "db", address="240.240.0.5", bound=False)),
        (CDS, eds_cluster("a")),
    ):
        original = entry(message)
        assert without_ipv6(type_url, "a", original) is original


def at(address: str) -> SocketAddress:
    return SocketAddress(address=address, port_value=3306)


def test_another_dialect_is_adapted_once_per_version_and_keeps_its_versions(tmp_path: Path) -> None:
    calls: list[str] = []

    def adapt(type_url: str, name: str, original: Entry) -> Entry:
        calls.append(name)
        return Entry(original.version, original.body + b"")

    async def story() -> None:
        conditions = Recorder()
        relay = Relay(Cache(tmp_path / "c", SystemClock(), conditions), conditions, adapt=adapt)
        a, b = entry(eds_cluster("a")), entry(eds_cluster("b"))
        await relay.offer(Received(CDS, "1", {"a": a}, (), {}))
        await relay.offer(Received(CDS, "2", {"b": b}, (), {}))
        assert calls == ["a", "b"]
        assert {n: e.version for n, e in relay.snapshot.value[CDS].items()} == {"a": a.version, "b": b.version}

    asyncio.run(story())
