"""Which endpoint sets and routes the accepted clusters and listeners refer to: what to ask the control plane for.

Derived here, not taken from what Envoy asks: a host whose Envoy is down, or not up yet, still gets the whole
configuration at once and keeps it for the next boot; and a new cluster's endpoints are asked for without waiting for
Envoy to ask first. The names are exactly Envoy's own: ``service_name`` (else the name) of EDS clusters,
``route_config_name`` of HTTP connection managers.
"""

from collections.abc import Iterator, Mapping

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from google.protobuf.message import DecodeError

from meshagent.protocol.entry import Entry
from meshagent.protocol.types import CDS, EDS, LDS, RDS

_HCM = "type.googleapis.com/" + HttpConnectionManager.DESCRIPTOR.full_name


def referred(type_url: str, body: bytes) -> frozenset[str]:
    """Names that one cluster (of EDS) or one listener (of RDS) refers to. Raises ``DecodeError``."""
    if type_url == CDS:
        return frozenset(_endpoint_sets(body))
    if type_url == LDS:
        return frozenset(_routes(body))
    return frozenset()


#: What a resource of the first type refers to is of the second.
REFERS_TO: Mapping[str, str] = {CDS: EDS, LDS: RDS}


class References:
    """Remembers the references of every resource by its version, so that an update reads only what changed."""

    def __init__(self) -> None:
        self._known: dict[str, dict[str, tuple[Entry, frozenset[str]]]] = {CDS: {}, LDS: {}}

    def wanted(self, type_url: str, *holdings: Mapping[str, Entry]) -> frozenset[str]:
        """Names that the resources of ``type_url`` (CDS or LDS) in any of ``holdings`` refer to."""
        before, now = self._known[type_url], {}
        names: set[str] = set()
        for holding in holdings:
            for name, entry in holding.items():
                found = self._one(type_url, entry, before.get(name))
                now[name] = (entry, found)
                names |= found
        self._known[type_url] = now
        return frozenset(names)

    def _one(self, type_url: str, entry: Entry, known: tuple[Entry, frozenset[str]] | None) -> frozenset[str]:
        if known is not None and known[0] is entry:
            return known[1]
        try:
            return referred(type_url, entry.body)
        except DecodeError:
            return frozenset()


def _endpoint_sets(body: bytes) -> Iterator[str]:
    cluster = Cluster.FromString(body)
    if cluster.type == Cluster.EDS:
        yield cluster.eds_cluster_config.service_name or cluster.name


def _routes(body: bytes) -> Iterator[str]:
    listener = Listener.FromString(body)
    chains = [*listener.filter_chains]
    if listener.HasField("default_filter_chain"):
        chains.append(listener.default_filter_chain)
    for chain in chains:
        for network_filter in chain.filters:
            if network_filter.typed_config.type_url == _HCM:
                manager = HttpConnectionManager.FromString(network_filter.typed_config.value)
                if manager.HasField("rds"):
                    yield manager.rds.route_config_name
