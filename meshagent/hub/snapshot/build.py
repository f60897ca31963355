"""From the mesh's state to every host's snapshot, each resource built and serialised once.

Three layers, each kept as long as its frozen input is equal:
per service (cluster, endpoints, routes, listeners) -> per kind of host (all services merged; with or without IPv6)
-> per scope (what a host serves; hosts that serve nothing share one). A change of one service builds that service anew,
and a map in which nothing changed stays the same object: the publisher skips it without looking inside.
"""

from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, field

from google.protobuf.message import Message

from meshagent.hub.snapshot import clusters, endpoints, listeners, naming, routes
from meshagent.hub.snapshot.messages import entry
from meshagent.hub.snapshot.names import name_table
from meshagent.hub.snapshot.policy import host_policy
from meshagent.hub.snapshot.view import Scope, mesh_addresses, scope_of, served_by_host
from meshagent.hub.state import MeshService, MeshState
from meshagent.protocol.entry import Entry, Snapshot
from meshagent.protocol.types import CDS, EDS, HOST_POLICY, LDS, NDS, RDS, SINGLETON_NAMES

Resources = Mapping[str, Mapping[str, Entry]]
_ENVOY = (CDS, EDS, LDS, RDS)


#: A type's map below, and the same with a host's own part above it.
_Overlay = tuple[Mapping[str, Entry], Mapping[str, Entry]]


@dataclass(slots=True)
class Builder:
    """Keeps what it built for the last state. ``update`` with a new state, then ``snapshot`` for each host."""

    state: MeshState = field(default_factory=MeshState)
    _services: dict[str, tuple[MeshService, Resources]] = field(default_factory=dict)
    _kinds: dict[bool, Resources] = field(default_factory=dict)
    _own: dict[Scope, Resources] = field(default_factory=dict)
    _overlays: dict[Hashable, _Overlay] = field(default_factory=dict)
    _snapshots: dict[str, Snapshot] = field(default_factory=dict)

    def update(self, state: MeshState) -> None:
        """Take the new state; what did not change keeps its bytes. Costs the changed services and a walk over all.

        When it raises, everything stays as it was.
        """
        before = self.state
        services, kinds = self._services, self._kinds
        if not kinds or (before.services, before.trust_domain) != (state.services, state.trust_domain):
            known = services if before.trust_domain == state.trust_domain else {}
            services = {s.host: _service(s, known.get(s.host), state.trust_domain) for s in state.services}
            kinds = {ipv6: _kind(services.values(), ipv6, kinds.get(ipv6)) for ipv6 in (False, True)}
        served = served_by_host(state)
        own: dict[Scope, Resources] = {}
        overlays: dict[Hashable, _Overlay] = {}
        snapshots: dict[str, Snapshot] = {}
        for host in state.hosts:
            serving = served.get(host.name, ())
            scope = scope_of(state.trust_domain, host, serving)
            own[scope] = own.get(scope) or self._own.get(scope) or scope_resources(scope)
            layered = self._layered(kinds, 6 in scope.families, own[scope], overlays)
            policy = {host.name: entry(host_policy(state, host, serving))}
            snapshots[host.name] = _keep(self._snapshots.get(host.name), {**layered, HOST_POLICY: policy})
        self.state, self._services, self._kinds = state, services, kinds
        self._own, self._overlays, self._snapshots = own, overlays, snapshots

    def snapshot(self, host_name: str) -> Snapshot:
        """Everything for one host; the same object as last time when nothing changed for it.

        A host the state doesn't hold gets ``{}``: nothing is known, so nothing it has is taken away.
        """
        return self._snapshots.get(host_name, {})

    def knows(self, host_name: str) -> bool:
        """True when the state holds the host."""
        return host_name in self._snapshots

    def _layered(
        self, kinds: Mapping[bool, Resources], ipv6: bool, own: Resources, overlays: dict[Hashable, _Overlay]
    ) -> Resources:
        """All services with a host's own part above; hosts whose own part is equal share the map."""
        below = kinds[ipv6]
        layered = dict(below)
        for type_url, mine in own.items():
            if mine:
                key = (ipv6, type_url, frozenset((name, e.version) for name, e in mine.items()))
                known = overlays.get(key) or self._overlays.get(key)
                if known is None or known[0] is not below[type_url]:
                    known = (below[type_url], {**below[type_url], **mine})
                overlays[key] = known
                layered[type_url] = known[1]
        return layered


def _service(
    service: MeshService, known: tuple[MeshService, Resources] | None, trust_domain: str
) -> tuple[MeshService, Resources]:
    if known is not None and known[0] == service:
        return known
    return service, service_resources(service, trust_domain)


def _kind(services: Collection[tuple[MeshService, Resources]], ipv6: bool, before: Resources | None) -> Resources:
    """All services, for hosts with or without IPv6. Two that claim one address and port: the first keeps it."""
    merged: dict[str, dict[str, Entry]] = {type_url: {} for type_url in _ENVOY}
    merged[CDS] |= _NO_SERVICE
    merged[LDS] |= _VIRTUAL_OUTBOUND if ipv6 else _VIRTUAL_OUTBOUND4
    for service, resources in services:
        for type_url in (CDS, EDS, RDS):
            merged[type_url].update(resources[type_url])
        for name in listener_names(service, ipv6):
            merged[LDS].setdefault(name, resources[LDS][name])
    table = entry(name_table((service for service, _ in services), ipv6))
    return _keep(before, {**merged, NDS: {SINGLETON_NAMES[NDS]: table}})


def _keep(before: Resources | None, new: Resources) -> Resources:
    """``new``, with every map (and if possible the whole) that equals the one before replaced by the latter."""
    if before is None:
        return new
    kept = {t: before[t] if t in before and before[t] == new[t] else new[t] for t in new}
    return before if len(before) == len(kept) and all(before.get(t) is kept[t] for t in kept) else kept


def service_resources(service: MeshService, trust_domain: str) -> Resources:
    """One service for any host: cluster, endpoints and routes per port, a listener per address and port."""
    ports = service.ports
    every_address = mesh_addresses(service, ipv6=True)
    return {
        CDS: _entries(clusters.outbound(service, port, trust_domain) for port in ports),
        EDS: {naming.outbound(service.host, p.number): entry(endpoints.load_assignment(service, p)) for p in ports},
        LDS: _entries(each for port in ports for each in listeners.outbound(service, port, every_address)),
        RDS: _entries(routes.outbound(service, port) for port in ports if port.protocol.is_http),
    }


def listener_names(service: MeshService, ipv6: bool) -> list[str]:
    """The service's listeners on a host with or without IPv6."""
    addresses = mesh_addresses(service, ipv6)
    return [naming.listener(address, port.number) for port in service.ports for address in addresses]


def scope_resources(scope: Scope) -> Resources:
    """A host's own part: where peers come in, and from there to its processes."""
    families = scope.families if scope.serves else ()
    return {
        CDS: {name: entry(cluster) for name, cluster in clusters.inbounds(scope.inbound).items()},
        LDS: _entries(listeners.hbone(family, scope.trust_domain) for family in families),
        RDS: _entries(routes.hbone(family, scope.inbound, scope.trust_domain) for family in families),
    }


def _entries(messages: Iterable[Message]) -> dict[str, Entry]:
    return {message.name: entry(message) for message in messages}  # type: ignore[attr-defined]


_NO_SERVICE = _entries((clusters.black_hole(), clusters.passthrough()))
_VIRTUAL_OUTBOUND4 = _entries([listeners.virtual_outbound(4)])
_VIRTUAL_OUTBOUND = _entries(listeners.virtual_outbound(family) for family in (4, 6))
