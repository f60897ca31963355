"""The answer to ``peers``: services of the mesh, as the local proxy has them. Pure."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from envoy.config.core.v3.health_check_pb2 import HealthStatus
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment

from meshagent.model.names import NameTable
from meshagent.protocol.entry import Snapshot
from meshagent.protocol.types import EDS

_USABLE = (HealthStatus.HEALTHY, HealthStatus.UNKNOWN)


def build_peers(snapshot: Snapshot, names: NameTable) -> dict[str, Any]:
    """``{"services": [{host, ports, addresses, endpoints}]}``, by host name."""
    ports: dict[str, set[int]] = defaultdict(set)
    endpoints: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for entry in snapshot.get(EDS, {}).values():
        assignment = ClusterLoadAssignment.FromString(entry.body)
        host, port = service_of(assignment.cluster_name)
        if host:
            ports[host].add(port)
            endpoints[host] += _endpoints(assignment)
    return {
        "services": [
            {
                "host": host,
                "ports": sorted(ports[host]),
                "addresses": [str(ip) for ip in names.entries[host].addresses] if host in names.entries else [],
                "endpoints": endpoints[host],
            }
            for host in sorted(ports)
        ]
    }


def service_of(cluster: str) -> tuple[str, int]:
    """Host and port of ``outbound|PORT|SUBSET|HOST`` (Istio's form), ("", 0) for any other name."""
    parts = cluster.split("|")
    if len(parts) != 4 or parts[0] != "outbound" or not parts[1].isdecimal():
        return "", 0
    return parts[3], int(parts[1])


def _endpoints(assignment: ClusterLoadAssignment) -> Iterable[dict[str, Any]]:
    for group in assignment.endpoints:
        locality = "/".join(part for part in (group.locality.region, group.locality.zone) if part)
        for endpoint in group.lb_endpoints:
            address = endpoint.endpoint.address.socket_address
            yield {
                "address": address.address,
                "port": address.port_value,
                "host": endpoint.endpoint.hostname,
                "healthy": endpoint.health_status in _USABLE,
                "locality": locality,
                "priority": group.priority,
            }
