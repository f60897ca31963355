"""What the Envoy of this host must not see: the seam between a control plane's dialect and the proxy that runs here.

The hub writes for stock Envoy, so its resources pass untouched, but for one thing that only the host knows: where the
kernel has no IPv6 (booted with ``ipv6.disable=1``), Envoy (1.40.0) refuses a whole endpoint set or listener for one
address of IPv6 in it ("malformed IP address"). A control plane that uses extensions of its own proxy gets an
``Adapter`` of its own here; versions stay the control plane's, so ACKs need no translation.
"""

from collections.abc import Callable, Iterable, Iterator

from envoy.config.core.v3.address_pb2 import Address
from envoy.config.endpoint.v3.endpoint_components_pb2 import Endpoint, LbEndpoint
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.config.listener.v3.listener_pb2 import Listener

from meshagent.model.address import parse_ip
from meshagent.protocol.entry import Entry
from meshagent.protocol.types import EDS, LDS

#: type URL, resource name, entry -> the entry to serve.
Adapter = Callable[[str, str, Entry], Entry]


def identity(type_url: str, name: str, entry: Entry) -> Entry:
    """The hub's dialect: nothing to adapt."""
    del type_url, name
    return entry


def without_ipv6(type_url: str, name: str, entry: Entry) -> Entry:
    """For a kernel without IPv6: second addresses and endpoints that are IPv6 are left out."""
    del name
    if type_url == LDS:
        listener = Listener.FromString(entry.body)
        kept = [each for each in listener.additional_addresses if not _is_ipv6(each.address)]
        if len(kept) < len(listener.additional_addresses):
            del listener.additional_addresses[:]
            listener.additional_addresses.extend(kept)
            return Entry(entry.version, listener.SerializeToString(deterministic=True))
    if type_url == EDS:
        assignment = ClusterLoadAssignment.FromString(entry.body)
        for group in assignment.endpoints:
            left = list(_reachable(group.lb_endpoints))
            del group.lb_endpoints[:]
            group.lb_endpoints.extend(left)
        return Entry(entry.version, assignment.SerializeToString(deterministic=True))
    return entry


def _reachable(endpoints: Iterable[LbEndpoint]) -> Iterator[LbEndpoint]:
    """Those that have another address than of IPv6, with it in front."""
    for each in endpoints:
        every = (each.endpoint.address, *(more.address for more in each.endpoint.additional_addresses))
        usable = [address for address in every if not _is_ipv6(address)]
        if usable:
            first, *others = usable
            changed = LbEndpoint()
            changed.CopyFrom(each)
            changed.endpoint.address.CopyFrom(first)
            del changed.endpoint.additional_addresses[:]
            changed.endpoint.additional_addresses.extend(Endpoint.AdditionalAddress(address=a) for a in others)
            yield changed


def _is_ipv6(address: Address) -> bool:
    ip = parse_ip(address.socket_address.address)
    return ip is not None and ip.version == 6
