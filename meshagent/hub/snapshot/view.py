"""What of the mesh concerns one host: which families it speaks, what it serves, how its processes are reached."""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address

from meshagent.hub.state import HostView, MeshEndpoint, MeshService
from meshagent.model.address import IPAddress, parse_ip
from meshagent.model.doors import PORT_DOORS, Door
from meshagent.model.service import ServiceProtocol

FAMILIES = (4, 6)


@dataclass(frozen=True, slots=True)
class Target:
    """How the host's proxy reaches a process for callers of one address family.

    ``address`` None: the very address the peer dialled (the process listens on any). ``source`` None: the connection
    carries the client's own address; else it comes from ``source``, an address of the host — never from 127/8 or ::1,
    which programs trust.
    """

    address: IPAddress | None
    source: IPAddress | None

    @property
    def variant(self) -> str:
        """Tells two ways to one process apart: how the client's address is kept, and for which family if it isn't."""
        return "" if self.source is None else "own"


@dataclass(frozen=True, slots=True)
class Inbound:
    """One port of one service that this host serves. ``targets`` maps a family (4, 6) to the way to the process."""

    host: str
    port: int
    target_port: int
    protocol: ServiceProtocol
    targets: tuple[tuple[int, Target], ...]

    def target(self, family: int) -> Target | None:
        return dict(self.targets).get(family)


@dataclass(frozen=True, slots=True)
class SortedPort:
    """A port of this host at which the proxy ends mutual TLS of the mesh. ``host`` is the host name of a service on it;
    ``plain``: everything else goes on as it came, instead of being closed."""

    host: str
    port: int
    protocol: ServiceProtocol
    plain: bool


@dataclass(frozen=True, slots=True)
class Scope:
    """What one host's own resources depend on; two hosts with equal scopes get equal resources."""

    trust_domain: str
    families: tuple[int, ...]
    serves: bool
    inbound: tuple[Inbound, ...]
    doors: frozenset[Door] = frozenset()
    ports: tuple[SortedPort, ...] = ()


#: A service and the endpoint of it that a host serves.
Served = tuple[MeshService, MeshEndpoint]


def served_of(service: MeshService) -> dict[str, dict[tuple[str, int], Served]]:
    """Host name -> every port of the service that it serves to the mesh, once: the first endpoint counts."""
    found: dict[str, dict[tuple[str, int], Served]] = {}
    for endpoint in service.endpoints:
        if endpoint.host_name and endpoint.spiffe_id:
            of_host = found.setdefault(endpoint.host_name, {})
            of_host.setdefault((service.host, endpoint.port), (service, endpoint))
    return found


def scope_of(trust_domain: str, host: HostView, served: Iterable[Served], ports: tuple[SortedPort, ...] = ()) -> Scope:
    """The host's own part of the mesh. Postures ``observe`` and ``outbound`` let nobody in.

    ``ports`` matter to those hosts alone whose proxy is asked to sort them.
    """
    serves = host.posture is None or host.posture.serves_inbound
    families = tuple(f for f in FAMILIES if any(a.version == f for a in host.addresses))
    inbound = (_inbound(service, endpoint, host) for service, endpoint in served if serves)
    sorting = ports if serves and host.doors & PORT_DOORS else ()
    ordered = tuple(sorted(inbound, key=lambda i: (i.host, i.port)))
    return Scope(trust_domain, families, serves, ordered, host.doors, sorting)


def _inbound(service: MeshService, endpoint: MeshEndpoint, host: HostView) -> Inbound:
    ways = ((family, target_for(endpoint.target_address, family, host.addresses)) for family in FAMILIES)
    targets = tuple((family, target) for family, target in ways if target)
    return Inbound(service.host, endpoint.port, endpoint.target_port, protocol_of(service, endpoint), targets)


def protocol_of(service: MeshService, endpoint: MeshEndpoint) -> ServiceProtocol:
    """What is spoken on the port that ``endpoint`` serves."""
    return next((p.protocol for p in service.ports if p.number == endpoint.port), ServiceProtocol.TCP)


def target_for(announced: str, family: int, own: tuple[IPAddress, ...]) -> Target | None:
    """The way to a process that listens on ``announced``, for a caller of ``family``; None: there is none.

    ``announced`` is what the process is bound to: '' or '::' any address of both families, '0.0.0.0' any of IPv4,
    else one address. A socket cannot mix families, so the host's own address stands in for a caller of the other one;
    for a process on loopback too, because the kernel refuses answers from 127.0.0.1 to a foreign address before
    our mark could send them back to the proxy.
    """
    address = parse_ip(announced) if announced else None
    if address is None or (address.is_unspecified and address.version in (6, family)):
        return Target(None, None)
    own_source = next((a for a in own if a.version == address.version), None)
    if address.is_unspecified:  # IPv4 only, and the caller came over IPv6
        return Target(own_source, own_source) if own_source else None
    if address.is_loopback:
        return Target(address, own_source) if own_source else None
    return Target(address, None if address.version == family else address)


def virtual_addresses(service: MeshService, ipv6: bool) -> tuple[IPAddress, ...]:
    """The service's stable addresses; IPv6 only where the host has it."""
    return (service.virtual4, service.virtual6) if ipv6 else (service.virtual4,)


def listened(service: MeshService, ipv6: bool) -> tuple[IPAddress, ...]:
    """The addresses after which its listeners on a host are named; claims of IPv6 only where the host has it."""
    return (service.virtual4, *(each for each in service.claimed if isinstance(each, IPv4Address) or ipv6))
