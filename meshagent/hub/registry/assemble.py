"""The mesh from what is known of it: hosts and their accepted services, resources, virtual addresses. Pure.

An accepted service acts as a WorkloadEntry (labels ``app: <name>`` and its own) and as an implicit ServiceEntry. An
explicit ServiceEntry for the same host name takes over: then its ports, addresses and selection hold.
"""

import math
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from meshagent.hub.registry.virtual import addresses_of
from meshagent.hub.state import (
    EntryPort,
    HostView,
    Labels,
    MeshEndpoint,
    MeshPort,
    MeshService,
    MeshState,
    ResourceViews,
    ServiceEntryView,
    WorkloadView,
)
from meshagent.hub.store.rows import HostRow
from meshagent.model.address import IPAddress, parse_ip
from meshagent.model.identity import SpiffeId
from meshagent.model.names import service_host
from meshagent.model.service import ServiceProtocol
from meshagent.protocol.announce import Announced, AnnouncedService


@dataclass(frozen=True, slots=True)
class LiveHost:
    """An enrolled host with what it said last (None: nothing, or goodbye) and which of its services are accepted.

    ``since``: service host name -> when this host first served it, epoch seconds.
    """

    row: HostRow
    announced: Announced | None = None
    accepted: tuple[AnnouncedService, ...] = ()
    connected: bool = False
    stale: bool = False
    since: Mapping[str, float] = field(default_factory=dict)

    @property
    def serves(self) -> bool:
        """False in a posture that lets nobody in: clients must not try it."""
        return self.announced is None or self.announced.posture.serves_inbound

    @property
    def addresses(self) -> tuple[IPAddress, ...]:
        """As announced, else as told at enrolment; preferred first."""
        if self.announced:
            return self.announced.addresses
        return tuple(ip for text in self.row.addresses if (ip := parse_ip(text)) is not None)


@dataclass(frozen=True, slots=True)
class MeshFacts:
    """Everything ``assemble`` looks at. ``indexes``: service host name -> virtual index, present for every name."""

    trust_domain: str
    zone: str
    root_namespace: str
    hosts: tuple[LiveHost, ...] = ()
    indexes: Mapping[str, int] = field(default_factory=dict)
    resources: ResourceViews = field(default_factory=ResourceViews)

    def spiffe_id(self, namespace: str, service_account: str) -> SpiffeId:
        return SpiffeId(self.trust_domain, namespace, service_account)


@dataclass(frozen=True, slots=True)
class Workload:
    """One place a service may run at, wherever it came from; ``port_names``: port name -> target port.

    ``order``: active before standby. Written places come as they are written, then hosts as they first served it.
    ``serves`` False: it belongs to the service, but lets nobody in now. ``host`` and ``protocol``: the service's host
    name and protocol where the place was announced.
    """

    name: str
    namespace: str
    labels: Labels
    endpoint: MeshEndpoint
    port_names: Mapping[str, int] = field(default_factory=dict)
    order: float = 0.0
    serves: bool = True
    host: str = ""
    protocol: ServiceProtocol = ServiceProtocol.TCP


#: Which enrolled host holds an address with a SPIFFE ID.
Holders = Mapping[tuple[IPAddress, str], LiveHost]


def assemble(facts: MeshFacts) -> MeshState:
    """One value, sorted, so that equal facts in any order give equal states."""
    announced = [announced_workload(facts, host, s) for host in facts.hosts for s in host.accepted]
    explicit = _explicit(facts, announced)
    implicit = implicit_services(facts, announced, taken=explicit.keys())
    services = sorted([*explicit.values(), *implicit], key=lambda s: s.host)
    return MeshState(
        trust_domain=facts.trust_domain,
        zone=facts.zone,
        root_namespace=facts.root_namespace,
        services=tuple(services),
        hosts=tuple(sorted((host_view(facts, h) for h in facts.hosts), key=lambda h: h.name)),
        peer_authentications=facts.resources.peer_authentications,
    )


def host_view(facts: MeshFacts, host: LiveHost) -> HostView:
    return HostView(
        name=host.row.name,
        namespace=host.row.namespace,
        spiffe_id=facts.spiffe_id(host.row.namespace, host.row.service_account),
        addresses=host.addresses,
        connected=host.connected,
        posture=host.announced.posture if host.announced else None,
        locality=host.announced.locality if host.announced else "",
        doors=host.announced.doors if host.announced else frozenset(),
    )


def announced_workload(facts: MeshFacts, host: LiveHost, service: AnnouncedService) -> Workload:
    declared = service.declared
    labels = tuple(sorted({"app": declared.name, **dict(declared.labels)}.items()))
    endpoint = MeshEndpoint(
        port=declared.port,
        target_port=declared.target_port,
        host_name=host.row.name,
        addresses=host.addresses,
        spiffe_id=str(facts.spiffe_id(host.row.namespace, host.row.service_account)),
        target_address=str(service.target_address),
        healthy=service.health.healthy,
        weight=declared.weight,
        priority=declared.priority,
        locality=declared.site or (host.announced.locality if host.announced else ""),
        labels=labels,
        stale=host.stale,
    )
    name = service_host(declared.name, host.row.namespace, facts.zone)
    order = host.since.get(name, math.inf)
    return Workload(
        declared.name,
        host.row.namespace,
        labels,
        endpoint,
        order=order,
        serves=host.serves,
        host=name,
        protocol=declared.protocol,
    )


# --- services nobody wrote down: one for each announced name


def implicit_services(facts: MeshFacts, announced: Iterable[Workload], taken: Container[str]) -> list[MeshService]:
    by_host: dict[str, list[Workload]] = defaultdict(list)
    for workload in announced:
        by_host[workload.host].append(workload)
    return [implicit_service(facts, host, workloads) for host, workloads in by_host.items() if host not in taken]


def implicit_service(facts: MeshFacts, host: str, workloads: Sequence[Workload]) -> MeshService:
    """The service that announcements of one name make; ``workloads`` has at least one."""
    return _service(
        facts,
        host,
        workloads[0].name,
        workloads[0].namespace,
        ports=tuple(sorted({MeshPort(w.endpoint.port, w.protocol) for w in workloads})),
        endpoints=[(w.order, w.endpoint) for w in workloads if w.serves],
        accounts=[w.endpoint.spiffe_id for w in workloads],
    )


def _service(
    facts: MeshFacts,
    host: str,
    name: str,
    namespace: str,
    *,
    ports: tuple[MeshPort, ...],
    endpoints: Iterable[tuple[float, MeshEndpoint]],
    claimed: tuple[IPAddress, ...] = (),
    accounts: Iterable[str] = (),
    mtls: bool = True,
) -> MeshService:
    placed = sorted(endpoints, key=lambda p: (p[1].port, p[0], p[1].host_name, [str(a) for a in p[1].addresses]))
    ordered = tuple(endpoint for _, endpoint in placed)
    virtual4, virtual6 = addresses_of(facts.indexes[host])
    return MeshService(
        host=host,
        name=name,
        namespace=namespace,
        ports=ports,
        virtual4=virtual4,
        virtual6=virtual6,
        claimed=claimed,
        service_accounts=tuple(sorted({a for a in (*accounts, *(e.spiffe_id for e in ordered)) if a})),
        endpoints=ordered,
        mtls=mtls,
    )


# --- ServiceEntries


def _explicit(facts: MeshFacts, announced: list[Workload]) -> dict[str, MeshService]:
    places = Places(facts, announced)
    return {
        host: entry_service(facts, entry, host, claimed, places.chosen(entry))
        for host, (entry, claimed) in entries_in_force(facts.resources).items()
    }


def entries_in_force(resources: ResourceViews) -> dict[str, tuple[ServiceEntryView, tuple[IPAddress, ...]]]:
    """Service host name -> its entry and the addresses that it claims. The oldest entry of a host name holds it, and
    the oldest entry of an address and port owns that."""
    found: dict[str, tuple[ServiceEntryView, tuple[IPAddress, ...]]] = {}
    owned: set[tuple[IPAddress, int]] = set()
    for entry in resources.service_entries:
        for host in entry.hosts:
            if host not in found:
                claimed = tuple(a for a in entry.addresses if not any((a, p.number) in owned for p in entry.ports))
                owned.update((a, p.number) for a in claimed for p in entry.ports)
                found[host] = entry, claimed
    return found


class Places:
    """Where ServiceEntries may be served: announced workloads, WorkloadEntries, endpoints written in the entry."""

    def __init__(self, facts: MeshFacts, announced: Iterable[Workload]) -> None:
        self._facts = facts
        self._holders: Holders = {(a, identity_of(facts, host)): host for host in facts.hosts for a in host.addresses}
        entries = enumerate(facts.resources.workload_entries)
        self._all = [*announced, *(written_workload(facts, self._holders, view, order) for order, view in entries)]

    def chosen(self, entry: ServiceEntryView) -> list[Workload]:
        """The places of one entry."""
        if entry.selector:
            first = entry.selector[0]  # asked of every place of the mesh for one change: a call for each is the most
            return [w for w in self._all if first in w.labels and selects(entry, w.namespace, w.labels)]
        return [written_workload(self._facts, self._holders, view, n) for n, view in enumerate(entry.endpoints)]


def selects(entry: ServiceEntryView, namespace: str, labels: Labels) -> bool:
    """True when the entry's selector picks a workload with these labels."""
    return bool(entry.selector) and namespace == entry.namespace and all(wanted in labels for wanted in entry.selector)


def entry_service(
    facts: MeshFacts, entry: ServiceEntryView, host: str, claimed: tuple[IPAddress, ...], chosen: list[Workload]
) -> MeshService:
    usable = [workload for workload in chosen if workload.serves or not entry.mesh]
    endpoints = [(w.order, _at_port(w, port, mtls=entry.mesh)) for port in entry.ports for w in usable]
    accounts = (*entry.subject_alt_names, *(w.endpoint.spiffe_id for w in chosen))
    return _service(
        facts,
        host,
        host.partition(".")[0],
        entry.namespace,
        ports=tuple(sorted(MeshPort(p.number, p.protocol, p.name) for p in entry.ports)),
        endpoints=endpoints,
        claimed=claimed,
        accounts=accounts if entry.mesh else (),
        mtls=entry.mesh,
    )


def _at_port(workload: Workload, port: EntryPort, *, mtls: bool) -> MeshEndpoint:
    """The port on the wire: the endpoint's own for this port's name, else ``targetPort``, else the number (Istio).

    An announced service counts as having named its own port.
    """
    known = workload.endpoint
    same_port = known.port == port.number
    target = workload.port_names.get(port.name) or (known.target_port if same_port else 0)
    return MeshEndpoint(
        port=port.number,
        target_port=target or port.target_port or port.number,
        host_name=known.host_name if mtls else "",
        addresses=known.addresses,
        spiffe_id=known.spiffe_id if mtls else "",
        target_address=known.target_address if mtls else "",
        healthy=known.healthy,
        weight=known.weight,
        priority=known.priority,
        locality=known.locality,
        labels=known.labels,
        stale=known.stale,
    )


def written_workload(facts: MeshFacts, holders: Holders, view: WorkloadView, order: int) -> Workload:
    """A WorkloadEntry; where an enrolled host of that identity holds the address, that host serves it."""
    spiffe_id = str(facts.spiffe_id(view.namespace, view.service_account)) if view.service_account else ""
    host = holders.get((view.address, spiffe_id))
    endpoint = MeshEndpoint(
        port=0,
        target_port=0,
        host_name=host.row.name if host else "",
        addresses=(view.address,),
        spiffe_id=spiffe_id,
        weight=view.weight,
        locality=view.locality or (host.announced.locality if host and host.announced else ""),
        labels=view.labels,
        stale=host.stale if host else False,
    )
    serves = host is None or host.serves
    return Workload(view.name, view.namespace, view.labels, endpoint, dict(view.ports), order, serves)


def identity_of(facts: MeshFacts, host: LiveHost) -> str:
    return str(facts.spiffe_id(host.row.namespace, host.row.service_account))
