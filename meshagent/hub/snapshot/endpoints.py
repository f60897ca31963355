"""Endpoint sets: where a service's port is served, in which order, and who is well.

Hosts of the mesh are named at their HBONE port, others at the port the process listens on. A host's other address
family rides along as an additional address (Happy Eyeballs, RFC 8305): a client with only that family reaches it too.
"""

from collections.abc import Iterable
from itertools import groupby

from envoy.config.core.v3.base_pb2 import Locality
from envoy.config.core.v3.health_check_pb2 import HealthStatus
from envoy.config.endpoint.v3.endpoint_components_pb2 import Endpoint, LbEndpoint, LocalityLbEndpoints
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from google.protobuf.wrappers_pb2 import UInt32Value

from meshagent.hub.snapshot import naming
from meshagent.hub.snapshot.clusters import Way, way
from meshagent.hub.snapshot.messages import socket_address
from meshagent.hub.state import MeshEndpoint, MeshPort, MeshService
from meshagent.model.address import IPAddress
from meshagent.model.ports import HBONE
from meshagent.model.service import ServiceProtocol

#: Protocols whose servers hold state of their own: one serves, the next takes over; never turn by turn.
ACTIVE_STANDBY = frozenset((ServiceProtocol.MYSQL, ServiceProtocol.POSTGRES, ServiceProtocol.REDIS))


def load_assignment(service: MeshService, port: MeshPort) -> ClusterLoadAssignment:
    """The endpoint set of one port, under its cluster's name."""
    chosen = way(service)
    through_proxy = chosen is Way.TUNNEL
    usable = [e for e in service.endpoints_of(port.number) if e.addresses and _reachable(e, chosen)]
    ranked = sorted(ranks(usable, port.protocol), key=lambda pair: (pair[0], pair[1].locality))
    groups = groupby(ranked, key=lambda pair: (pair[0], pair[1].locality))
    return ClusterLoadAssignment(
        cluster_name=naming.outbound(service.host, port.number),
        endpoints=[
            LocalityLbEndpoints(
                priority=rank,
                locality=_locality(locality),
                lb_endpoints=[_endpoint(e, through_proxy) for _, e in members],
            )
            for (rank, locality), members in groups
        ],
    )


def _reachable(endpoint: MeshEndpoint, chosen: Way) -> bool:
    """Nobody is called in a way that it doesn't answer: in plain text, or by a tunnel where a sidecar stands."""
    if chosen is Way.TUNNEL:
        return bool(endpoint.spiffe_id) and bool(endpoint.host_name or not endpoint.own_port_mtls)
    return chosen is Way.PLAIN or endpoint.own_port_mtls


def ranks(endpoints: Iterable[MeshEndpoint], protocol: ServiceProtocol) -> list[tuple[int, MeshEndpoint]]:
    """(Envoy priority, endpoint): 0 is tried first; priorities are without gaps, as Envoy wants them.

    Active/standby protocols get one endpoint per priority, in the order of the declared priority and then as the
    mesh's state orders them; others share a priority with their declared equals.
    """
    ordered = sorted(endpoints, key=lambda e: e.priority)
    if protocol in ACTIVE_STANDBY:
        return list(enumerate(ordered))
    declared = sorted({e.priority for e in ordered})
    return [(declared.index(e.priority), e) for e in ordered]


def _endpoint(endpoint: MeshEndpoint, through_proxy: bool) -> LbEndpoint:
    port = HBONE if through_proxy else endpoint.target_port
    first, *others = _one_per_family(endpoint.addresses)
    message = Endpoint(
        address=socket_address(first, port),
        hostname=endpoint.host_name,  # for people (``meshagent peers``): nothing routes by it
        additional_addresses=[Endpoint.AdditionalAddress(address=socket_address(a, port)) for a in others],
    )
    return LbEndpoint(
        endpoint=message,
        health_status=HealthStatus.HEALTHY if endpoint.healthy else HealthStatus.UNHEALTHY,
        load_balancing_weight=UInt32Value(value=max(1, endpoint.weight)),
    )


def _one_per_family(addresses: Iterable[IPAddress]) -> list[IPAddress]:
    """The preferred address of each family, the host's favourite first."""
    chosen: dict[int, IPAddress] = {}
    for address in addresses:
        chosen.setdefault(address.version, address)
    return list(chosen.values())


def _locality(text: str) -> Locality:
    """``region/zone`` as Istio writes it; a third part is the sub-zone."""
    region, zone, sub_zone = (*text.split("/", 2), "", "")[:3]
    return Locality(region=region, zone=zone, sub_zone=sub_zone)
