"""From the mesh's state to every host's snapshot, each resource built and serialised once.

Three layers: per service (cluster, endpoints, routes, listeners) -> per kind of host (all services merged; with or
without IPv6) -> per host, its own part above (what it serves; hosts with equal parts share one). A change costs what
it touches: that service is built anew, the merged maps are patched, the hosts that serve it get their part anew. A map
in which nothing changed stays the same object, so the publisher skips it without looking inside; snapshots are put
together when somebody asks for one.
"""

from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

from google.protobuf.message import Message

from meshagent.hub.snapshot import clusters, doors, endpoints, listeners, naming, routes
from meshagent.hub.snapshot.merge import BuiltService, Change, Resources, merged
from meshagent.hub.snapshot.messages import entry
from meshagent.hub.snapshot.policy import host_policy, port_verdicts, sorted_ports
from meshagent.hub.snapshot.view import Scope, Served, scope_of, served_of
from meshagent.hub.state import HostView, MeshService, MeshState
from meshagent.protocol.entry import Entry, Patched, Snapshot
from meshagent.protocol.types import CDS, EDS, HOST_POLICY, LDS, RDS

#: A type's map below, and the same with a host's own part above it.
_Overlay = tuple[Mapping[str, Entry], Mapping[str, Entry]]

#: Service host name and port -> the service and the endpoint by which a host serves it.
_ServedHere = Mapping[tuple[str, int], Served]


@dataclass(frozen=True, slots=True)
class _Own:
    """A host's own resources, and for each type with some what tells equal ones apart."""

    resources: Resources
    keys: Mapping[str, Hashable]


@dataclass(frozen=True, slots=True)
class _HostPart:
    """Everything of one host's snapshot that isn't the services themselves."""

    view: HostView
    ipv6: bool
    own: _Own
    policy: Mapping[str, Entry]


@dataclass(slots=True)
class Builder:
    """Keeps what it built for the last state. ``update`` with a new state, then ``snapshot`` for each host."""

    state: MeshState = field(default_factory=MeshState)
    _services: dict[str, BuiltService] = field(default_factory=dict)
    _kinds: Mapping[bool, Resources] = field(default_factory=dict)
    _served: dict[str, _ServedHere] = field(default_factory=dict)
    _hosts: dict[str, _HostPart] = field(default_factory=dict)
    _own: dict[Scope, _Own] = field(default_factory=dict)
    _overlays: dict[Hashable, _Overlay] = field(default_factory=dict)
    _snapshots: dict[str, Snapshot] = field(default_factory=dict)

    def update(self, state: MeshState) -> Collection[str]:
        """Take the new state; gives the hosts whose snapshots may differ now, those that are gone included.

        Costs the changed services, the hosts that serve them, and a glance at all others. When it raises, everything
        stays as it was.
        """
        afresh = state.trust_domain != self.state.trust_domain
        known = {} if afresh else self._services
        changes = [] if known and state.services is self.state.services else list(_changes(known, state))
        services = {**known}
        for change in changes:
            if change.new:
                services[change.host] = change.new
            else:
                del services[change.host]
        before = {} if afresh else self._kinds
        kinds = {ipv6: merged(services, changes, ipv6, before.get(ipv6)) for ipv6 in (False, True)}
        served, touched = _serving({} if afresh else self._served, changes)
        ruled = (self.state.peer_authentications, self.state.root_namespace)
        all_anew = afresh or ruled != (state.peer_authentications, state.root_namespace)
        hosts = {}
        anew = set()
        for view in state.hosts:
            part = self._hosts.get(view.name)
            if part is None or all_anew or view.name in touched or _differs(part.view, view):
                part = self._part(state, view, tuple(served.get(view.name, {}).values()), part)
                anew.add(view.name)
            elif part.view is not view:
                part = replace(part, view=view)
            hosts[view.name] = part
        same = all(before.get(ipv6) is kind for ipv6, kind in kinds.items())
        told = anew | (self._hosts.keys() - hosts.keys()) if same else self._hosts.keys() | hosts.keys()
        self.state, self._services, self._kinds, self._served, self._hosts = state, services, kinds, served, hosts
        self._forget()
        return told

    def snapshot(self, host_name: str) -> Snapshot:
        """Everything for one host; the same object as last time when nothing changed for it.

        A host the state doesn't hold gets ``{}``: nothing is known, so nothing it has is taken away.
        """
        part = self._hosts.get(host_name)
        if part is None:
            return {}
        new = {**self._layered(part), HOST_POLICY: part.policy}
        before = self._snapshots.get(host_name, {})
        if len(before) == len(new) and all(before.get(type_url) is new[type_url] for type_url in new):
            return before
        self._snapshots[host_name] = new
        return new

    def knows(self, host_name: str) -> bool:
        """True when the state holds the host."""
        return host_name in self._hosts

    def _part(
        self, state: MeshState, view: HostView, serving: tuple[Served, ...], before: _HostPart | None
    ) -> _HostPart:
        verdicts = port_verdicts(state, view, serving)
        scope = scope_of(state.trust_domain, view, serving, sorted_ports(verdicts, view))
        own = self._own.get(scope)
        if own is None:
            own = self._own[scope] = _own(scope_resources(scope))
        policy: Mapping[str, Entry] = {view.name: entry(host_policy(verdicts))}
        if before is not None and before.policy == policy:
            policy = before.policy
        return _HostPart(view, 6 in scope.families, own, policy)

    def _layered(self, part: _HostPart) -> Resources:
        """All services with a host's own part above; hosts whose own part is equal share the map."""
        below = self._kinds[part.ipv6]
        layered = dict(below)
        for type_url, key in part.own.keys.items():
            known = self._overlays.get((part.ipv6, type_url, key))
            if known is None or known[0] is not below[type_url]:
                known = (below[type_url], _above(known, below[type_url], part.own.resources[type_url]))
                self._overlays[part.ipv6, type_url, key] = known
            layered[type_url] = known[1]
        return layered

    def _forget(self) -> None:
        """Let go of what no host has any more, now and then."""
        for name in self._snapshots.keys() - self._hosts.keys():
            del self._snapshots[name]
        if len(self._own) > 2 * len(self._hosts) + 16:
            used = {id(part.own) for part in self._hosts.values()}
            self._own = {scope: own for scope, own in self._own.items() if id(own) in used}
        if len(self._overlays) > 6 * len(self._hosts) + 16:
            self._overlays = {}


def _differs(before: HostView, now: HostView) -> bool:
    """Whether the host is told something else; not by its being connected, which changes for all after a restart."""
    return before is not now and _told(before) != _told(now)


def _told(view: HostView) -> tuple[object, ...]:
    return view.namespace, view.spiffe_id, view.addresses, view.posture, view.locality, view.doors


def _changes(known: Mapping[str, BuiltService], state: MeshState) -> Iterable[Change]:
    """Services that are new, different or gone; the new ones built."""
    found = 0
    for service in state.services:
        old = known.get(service.host)
        found += old is not None
        if old is None or (old.service is not service and old.service != service):
            new = BuiltService(service, service_resources(service, state.trust_domain))
            yield Change(service.host, old, new)
    if found < len(known):
        for host in known.keys() - {service.host for service in state.services}:
            yield Change(host, known[host], None)


def _serving(
    before: Mapping[str, _ServedHere], changes: Iterable[Change]
) -> tuple[dict[str, _ServedHere], frozenset[str]]:
    """Who serves what after ``changes``, and the hosts for which that is not what it was."""
    served: dict[str, _ServedHere] = {**before}
    touched: set[str] = set()
    for change in changes:
        old = served_of(change.old.service) if change.old else {}
        new = served_of(change.new.service) if change.new else {}
        for host in old.keys() | new.keys():
            left = {key: each for key, each in served.get(host, {}).items() if key[0] != change.host}
            served[host] = {**left, **new.get(host, {})}
            touched.add(host)
            if not served[host]:
                del served[host]
    return served, frozenset(touched)


def _above(before: _Overlay | None, below: Mapping[str, Entry], own: Mapping[str, Entry]) -> Mapping[str, Entry]:
    """``below`` with ``own`` above; a patch of the layer ``before`` where ``below`` is a patch of that one's."""
    entries = {**below, **own}
    if before and isinstance(below, Patched) and isinstance(before[0], Patched) and below.after is before[0].mark:
        assert isinstance(before[1], Patched)
        return Patched(entries, before[1].mark, below.touched)
    return Patched(entries)


def _own(resources: Resources) -> _Own:
    keys = {t: frozenset((name, e.version) for name, e in mine.items()) for t, mine in resources.items() if mine}
    return _Own(resources, keys)


def service_resources(service: MeshService, trust_domain: str) -> Resources:
    """One service for any host: cluster, endpoints and routes per port, its listeners."""
    ports = service.ports
    return {
        CDS: _entries(clusters.outbound(service, port, trust_domain) for port in ports),
        EDS: {naming.outbound(service.host, p.number): entry(endpoints.load_assignment(service, p)) for p in ports},
        LDS: _entries(each for port in ports for each in listeners.outbound(service, port)),
        RDS: _entries(routes.outbound(service, port) for port in ports if port.protocol.is_http),
    }


def scope_resources(scope: Scope) -> Resources:
    """A host's own part: where peers come in, and from there to its processes."""
    families = scope.families if scope.serves else ()
    return {
        CDS: {name: entry(cluster) for name, cluster in clusters.inbounds(scope.inbound).items()}
        | _entries(map(clusters.inbound_passthrough, doors.passthroughs(scope))),
        LDS: {name: each for family in families for name, each in _hbone(family, scope.trust_domain).items()}
        | _entries(doors.listeners(scope)),
        RDS: _entries(routes.hbone(family, scope.inbound, scope.trust_domain) for family in families),
    }


@lru_cache
def _hbone(family: int, trust_domain: str) -> Mapping[str, Entry]:
    """The same for every host that serves; made once for a thousand of them."""
    return _entries([listeners.hbone(family, trust_domain)])


def _entries(messages: Iterable[Message]) -> dict[str, Entry]:
    return {message.name: entry(message) for message in messages}  # type: ignore[attr-defined]
