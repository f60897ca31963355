"""The mesh as the hub knows it: one immutable value, published by the registry, read by the snapshot.

Everything a host can be told follows from this value and the host's name; nothing in it changes by the mere
passing of time (no "last seen"), so that two equal states mean that nobody needs to be told anything.
Tuples are sorted (policies: oldest first), so equal meshes compare equal whatever order the news came in.
"""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from meshagent.model.address import IPAddress
from meshagent.model.doors import Door
from meshagent.model.identity import SpiffeId
from meshagent.model.names import DEFAULT_ZONE
from meshagent.model.posture import PlaintextMode, Posture
from meshagent.model.service import ServiceProtocol

Labels = tuple[tuple[str, str], ...]

#: Istio's label on workloads that take mutual TLS of the mesh on the service's own port (a sidecar stands before them).
MUTUAL_TLS_LABEL = ("security.istio.io/tlsMode", "istio")


@dataclass(frozen=True, slots=True, order=True)
class MeshPort:
    """A port of a service as the mesh calls it. ``name`` is Istio's port name (empty for announced services)."""

    number: int
    protocol: ServiceProtocol
    name: str = ""


@dataclass(frozen=True, slots=True)
class MeshEndpoint:
    """One place where one port of a service is served.

    ``port`` is the service's port (one of ``MeshService.ports``), ``target_port`` the one the process listens on.
    ``host_name`` names the enrolled host that serves it; empty when none is known under that address.
    ``addresses`` are the host's, preferred first: peers reach it at ``addresses[…]:15008`` (HBONE) when ``spiffe_id``
    is set, and must find exactly that identity there; an empty ``spiffe_id`` means plain TCP to
    ``addresses[…]:target_port``. ``target_address`` is what the host's own proxy connects to (as announced: 127.0.0.1,
    ::1 or an own address; may be empty: then the host's own address). ``stale`` endpoints are served from what was
    last known, their lease has run out.
    """

    port: int
    target_port: int
    host_name: str
    addresses: tuple[IPAddress, ...]
    spiffe_id: str
    target_address: str = ""
    healthy: bool = True
    weight: int = 100
    priority: int = 0
    locality: str = ""
    labels: Labels = ()
    stale: bool = False

    @property
    def own_port_mtls(self) -> bool:
        """True where mutual TLS is spoken on the port of the process itself."""
        return bool(self.spiffe_id) and MUTUAL_TLS_LABEL in self.labels


@dataclass(frozen=True, slots=True)
class MeshService:
    """One host name of the mesh. ``service_accounts`` are the SPIFFE IDs clients accept; ``claimed`` are literal
    addresses the mesh owns for this service's ports, beside its two virtual ones. ``mtls`` is False for a
    ServiceEntry outside the mesh (Istio's MESH_EXTERNAL): then endpoints carry no ``spiffe_id``.
    """

    host: str
    name: str
    namespace: str
    ports: tuple[MeshPort, ...]
    virtual4: IPv4Address
    virtual6: IPv6Address
    claimed: tuple[IPAddress, ...] = ()
    service_accounts: tuple[str, ...] = ()
    endpoints: tuple[MeshEndpoint, ...] = ()
    mtls: bool = True

    def endpoints_of(self, port: int) -> tuple[MeshEndpoint, ...]:
        """The endpoints that serve ``port`` (a service port)."""
        return tuple(e for e in self.endpoints if e.port == port)


@dataclass(frozen=True, slots=True)
class HostView:
    """An enrolled, not revoked host. ``connected`` tells whether its announcement stream is open now."""

    name: str
    namespace: str
    spiffe_id: SpiffeId
    addresses: tuple[IPAddress, ...] = ()
    connected: bool = False
    posture: Posture | None = None
    locality: str = ""
    doors: frozenset[Door] = frozenset()


@dataclass(frozen=True, slots=True)
class PeerAuthenticationView:
    """A validated PeerAuthentication. ``mode`` None is Istio's UNSET (inherit); ``port_modes`` by workload port.

    ``selector`` empty selects the whole namespace (the whole mesh in the root namespace).
    """

    namespace: str
    name: str
    selector: Labels = ()
    mode: PlaintextMode | None = None
    port_modes: tuple[tuple[int, PlaintextMode | None], ...] = ()


@dataclass(frozen=True, slots=True)
class WorkloadView:
    """A validated WorkloadEntry, or an endpoint written inside a ServiceEntry.

    ``ports`` maps a service's port name to the workload's port. ``service_account`` empty = plain text (Istio's rule).
    """

    namespace: str
    name: str
    address: IPAddress
    ports: tuple[tuple[str, int], ...] = ()
    labels: Labels = ()
    locality: str = ""
    weight: int = 100
    service_account: str = ""


@dataclass(frozen=True, slots=True)
class EntryPort:
    """A port of a ServiceEntry; ``target_port`` 0 = as ``number``."""

    number: int
    protocol: ServiceProtocol
    name: str = ""
    target_port: int = 0


@dataclass(frozen=True, slots=True)
class ServiceEntryView:
    """A validated ServiceEntry with static resolution. ``mesh`` is ``location: MESH_INTERNAL``.

    It takes over each of ``hosts`` from announcements; ``selector`` picks workloads (announced ones too) of its
    namespace, else ``endpoints`` serve.
    """

    namespace: str
    name: str
    hosts: tuple[str, ...]
    ports: tuple[EntryPort, ...]
    addresses: tuple[IPAddress, ...] = ()
    mesh: bool = False
    endpoints: tuple[WorkloadView, ...] = ()
    selector: Labels = ()
    subject_alt_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ResourceViews:
    """All applied resources, oldest first."""

    service_entries: tuple[ServiceEntryView, ...] = ()
    workload_entries: tuple[WorkloadView, ...] = ()
    peer_authentications: tuple[PeerAuthenticationView, ...] = ()


@dataclass(frozen=True, slots=True)
class MeshState:
    """The whole mesh at one moment."""

    trust_domain: str = "mesh.internal"
    zone: str = DEFAULT_ZONE
    root_namespace: str = "istio-system"
    services: tuple[MeshService, ...] = ()
    hosts: tuple[HostView, ...] = ()
    peer_authentications: tuple[PeerAuthenticationView, ...] = ()
