"""Names derived from clusters and listeners."""

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)

from meshagent.agent.relay.references import References, referred
from meshagent.protocol.entry import Entry
from meshagent.protocol.types import CDS, LDS
from tests.fakes.envoy_resources import eds_cluster, entry, tcp_listener


def http_listener(*route_names: str, default: str = "") -> Listener:
    listener = Listener(name="http")
    for name in route_names:
        manager = HttpConnectionManager(stat_prefix="h")
        manager.rds.route_config_name = name
        listener.filter_chains.add().filters.add(name="hcm").typed_config.Pack(manager)
    if default:
        manager = HttpConnectionManager(stat_prefix="h")
        manager.rds.route_config_name = default
        listener.default_filter_chain.filters.add(name="hcm").typed_config.Pack(manager)
    return listener


def test_only_clusters_with_discovered_endpoints_refer_to_endpoint_sets() -> None:
    other = eds_cluster("alias")
    other.eds_cluster_config.service_name = "outbound|80||a"
    assert referred(CDS, eds_cluster("c").SerializeToString()) == {"c"}
    assert referred(CDS, other.SerializeToString()) == {"outbound|80||a"}
    assert referred(CDS, Cluster(name="s", type=Cluster.STATIC).SerializeToString()) == set()


def test_every_chain_of_a_listener_may_refer_to_routes() -> None:
    assert referred(LDS, http_listener("80", "81", default="d").SerializeToString()) == {"80", "81", "d"}
    assert referred(LDS, tcp_listener("t", 80, "c").SerializeToString()) == set()


def test_names_follow_what_is_offered_and_what_is_still_served() -> None:
    references = References()
    old, new = {"l": entry(http_listener("1"))}, {"l": entry(http_listener("2"))}
    assert references.wanted(LDS, new, old) == {"1", "2"}
    assert references.wanted(LDS, new, new) == {"2"}
    assert references.wanted(LDS, {"l": Entry("x", b"\xff\xff")}) == set()
