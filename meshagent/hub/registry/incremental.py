"""``assemble`` for one mesh after the other, at a cost that goes with the change, not with the mesh.

What is kept: each host's view and workloads as long as it is the same ``LiveHost`` object, each service as long as none
of its places changed. A test holds it to the plain ``assemble`` over random histories. What is equal stays the same
object, so that everybody behind can tell by identity.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter

from meshagent.hub.registry.assemble import (
    LiveHost,
    MeshFacts,
    Places,
    Workload,
    announced_workload,
    entries_in_force,
    entry_service,
    host_view,
    implicit_service,
    selects,
)
from meshagent.hub.state import HostView, MeshService, MeshState, ResourceViews, ServiceEntryView
from meshagent.model.address import IPAddress

_BY_HOST = attrgetter("host")


@dataclass(frozen=True, slots=True)
class _Known:
    """What one host contributes."""

    live: LiveHost
    view: HostView
    workloads: tuple[Workload, ...]


@dataclass(frozen=True, slots=True)
class _Moved:
    """What is different: workloads and addresses before and after, names whose services must be looked at."""

    workloads: tuple[Workload, ...]
    addresses: frozenset[IPAddress]
    names: frozenset[str]


@dataclass(slots=True)
class Assembler:
    """Call ``update`` with the facts of one mesh, again and again."""

    _hosts: dict[int, _Known] = field(default_factory=dict)
    _by_name: dict[str, dict[int, Workload]] = field(default_factory=dict)
    _services: dict[str, tuple[int, MeshService]] = field(default_factory=dict)
    _explicit: Mapping[str, tuple[ServiceEntryView, tuple[IPAddress, ...]]] = field(default_factory=dict)
    _resources: ResourceViews | None = None
    _listed: tuple[MeshService, ...] | None = None  # of _services, sorted; None: has to be made anew
    _renewed: set[str] = field(default_factory=set)  # services that are others than in _listed, under the same name
    _indexes: Mapping[str, int] | None = None
    _views: tuple[HostView, ...] | None = None  # of _hosts, sorted; None: has to be made anew

    def update(self, facts: MeshFacts) -> MeshState:
        """What ``assemble(facts)`` gives."""
        before = self._explicit
        anew = self._resources is not facts.resources
        if anew:
            self._explicit, self._resources = entries_in_force(facts.resources), facts.resources
        moved = self._move(facts)
        taken_or_given = before.keys() ^ self._explicit.keys()
        self._implicit(facts, moved.names | taken_or_given)
        self._entries(facts, moved, anew)
        self._renumber(facts)
        services = self._list()
        if self._views is None:
            self._views = tuple(sorted((known.view for known in self._hosts.values()), key=attrgetter("name")))
        return MeshState(
            trust_domain=facts.trust_domain,
            zone=facts.zone,
            root_namespace=facts.root_namespace,
            services=services,
            hosts=self._views,
            peer_authentications=facts.resources.peer_authentications,
        )

    def _list(self) -> tuple[MeshService, ...]:
        """All services, sorted."""
        if self._listed is None:
            self._listed = tuple(sorted((s for _, s in self._services.values()), key=_BY_HOST))
        elif self._renewed:
            listed = list(self._listed)
            for host in self._renewed:
                listed[bisect_left(listed, host, key=_BY_HOST)] = self._services[host][1]
            self._listed = tuple(listed)
        self._renewed.clear()
        return self._listed

    def _move(self, facts: MeshFacts) -> _Moved:
        """Take the hosts in; a host is known by its row's id."""
        workloads: list[Workload] = []
        addresses: set[IPAddress] = set()
        names: set[str] = set()
        gone = self._hosts.keys() - {live.row.id for live in facts.hosts}
        changed = [live for live in facts.hosts if not self._knows(live)]
        for host_id, new in [*((i, None) for i in gone), *((live.row.id, live) for live in changed)]:
            old = self._hosts.pop(host_id, None)
            known = _known(facts, new, old) if new else None
            if known:
                self._hosts[host_id] = known
            if old is None or known is None or old.view is not known.view:
                self._views = None
            if old and known and old.workloads == known.workloads and old.view == known.view and _same(old, known):
                continue
            for side in filter(None, (old, known)):
                workloads += side.workloads
                addresses.update(side.live.addresses)
                names.update(workload.host for workload in side.workloads)
            self._place(host_id, old, known)
        return _Moved(tuple(workloads), frozenset(addresses), frozenset(names))

    def _knows(self, live: LiveHost) -> bool:
        known = self._hosts.get(live.row.id)
        return known is not None and known.live is live

    def _place(self, host_id: int, old: _Known | None, new: _Known | None) -> None:
        for workload in old.workloads if old else ():
            places = self._by_name[workload.host]
            places.pop(host_id, None)
            if not places:
                del self._by_name[workload.host]
        for workload in new.workloads if new else ():
            self._by_name.setdefault(workload.host, {})[host_id] = workload

    def _implicit(self, facts: MeshFacts, names: Iterable[str]) -> None:
        for name in names:
            places = self._by_name.get(name)
            if name in self._explicit:
                continue
            if places:
                self._put(facts, name, implicit_service(facts, name, list(places.values())))
            else:
                self._drop(name)

    def _entries(self, facts: MeshFacts, moved: _Moved, anew: bool) -> None:
        """Each entry again that the change may concern."""
        touched = [host for host, (entry, _) in self._explicit.items() if anew or _concerns(facts, entry, moved)]
        if not touched:
            return
        places = Places(facts, (w for known in self._hosts.values() for w in known.workloads))
        for host in touched:
            entry, claimed = self._explicit[host]
            self._put(facts, host, entry_service(facts, entry, host, claimed, places.chosen(entry)))

    def _renumber(self, facts: MeshFacts) -> None:
        """Names whose virtual addresses are others now (65,534 were given out): their services again."""
        if facts.indexes is self._indexes:
            return
        self._indexes = facts.indexes
        moved = [host for host, (index, _) in self._services.items() if facts.indexes[host] != index]
        self._implicit(facts, moved)
        for host in moved:
            if host in self._explicit:
                self._drop(host)
        if any(host in self._explicit for host in moved):
            self._entries(facts, _Moved((), frozenset(), frozenset()), anew=True)

    def _put(self, facts: MeshFacts, host: str, service: MeshService) -> None:
        known = self._services.get(host)
        kept = known[1] if known and known[1] == service else service
        if known is None:
            self._listed = None
        elif kept is not known[1]:
            self._renewed.add(host)
        self._services[host] = facts.indexes[host], kept

    def _drop(self, host: str) -> None:
        if self._services.pop(host, None):
            self._listed = None


def _known(facts: MeshFacts, live: LiveHost, old: _Known | None) -> _Known:
    view = host_view(facts, live)
    workloads = tuple(announced_workload(facts, live, service) for service in live.accepted)
    if old is not None:
        view = old.view if old.view == view else view
        workloads = old.workloads if old.workloads == workloads else workloads
    return _Known(live, view, workloads)


def _same(old: _Known, new: _Known) -> bool:
    """True when ServiceEntries that name the host's address see no difference either."""
    return (old.live.stale, old.live.serves, old.live.addresses) == (
        new.live.stale,
        new.live.serves,
        new.live.addresses,
    )


def _concerns(facts: MeshFacts, entry: ServiceEntryView, moved: _Moved) -> bool:
    if not moved.addresses:
        return False
    if entry.selector:
        written = facts.resources.workload_entries
        return any(selects(entry, w.namespace, w.labels) for w in moved.workloads) or any(
            w.address in moved.addresses and selects(entry, w.namespace, w.labels) for w in written
        )
    return any(endpoint.address in moved.addresses for endpoint in entry.endpoints)
