"""The name table (Istio's NDS): host name -> the addresses this host's applications are told."""

from collections.abc import Iterable

from meshagent.hub.snapshot.view import virtual_addresses
from meshagent.hub.state import MeshService
from meshagent.protocol.pb.istio_nds_pb2 import NameTable


def name_table(services: Iterable[MeshService], ipv6: bool) -> NameTable:
    """One table for all hosts of one kind: AAAA only where IPv6 is captured. Claimed literals are no answers."""
    table = NameTable()
    for service in services:
        info = table.table[service.host]
        info.ips.extend(map(str, virtual_addresses(service, ipv6)))
        info.registry, info.shortname, info.namespace = "External", service.name, service.namespace
    return table
