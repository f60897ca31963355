"""All services of the mesh as one host sees them, and the same after a change: patched where it changed.

Names of clusters, endpoints and routes hold the service's host name, so they can't meet. Listeners are named after an
address and a port, which two services may claim: then the first service keeps it, and the map is merged from all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from meshagent.hub.snapshot import clusters, listeners, naming
from meshagent.hub.snapshot.messages import entry
from meshagent.hub.snapshot.names import name_table
from meshagent.hub.snapshot.view import listened
from meshagent.hub.state import MeshService
from meshagent.protocol.entry import Entry, Patched
from meshagent.protocol.types import CDS, EDS, LDS, NDS, RDS, SINGLETON_NAMES

Resources = Mapping[str, Mapping[str, Entry]]


@dataclass(frozen=True, slots=True)
class BuiltService:
    """A service and its resources by type."""

    service: MeshService
    resources: Resources

    def listeners(self, ipv6: bool) -> Mapping[str, Entry]:
        """Those of a host with or without IPv6."""
        addresses = listened(self.service, ipv6)
        names = [naming.listener(address, port.number) for port in self.service.ports for address in addresses]
        return {name: self.resources[LDS][name] for name in names}

    @property
    def named(self) -> tuple[object, ...]:
        """What the name table says of it."""
        service = self.service
        return service.host, service.name, service.namespace, service.virtual4, service.virtual6


@dataclass(frozen=True, slots=True)
class Change:
    """One service before and after; None = it isn't there."""

    host: str
    old: BuiltService | None
    new: BuiltService | None


def merged(
    services: Mapping[str, BuiltService], changes: Sequence[Change], ipv6: bool, before: Resources | None
) -> Resources:
    """What a host with or without IPv6 has of all ``services``, which are those of ``before`` after ``changes``.

    Maps in which nothing changed are those of ``before``.
    """
    if before is None:
        return {
            CDS: Patched({**_NO_SERVICE, **_all(services, CDS)}),
            EDS: Patched(_all(services, EDS)),
            LDS: Patched(_listeners(services, ipv6)),
            RDS: Patched(_all(services, RDS)),
            NDS: _names(services, ipv6),
        }
    if not changes:
        return before
    patched = {type_url: _patched(before[type_url], _pairs(changes, type_url)) for type_url in (CDS, EDS, RDS)}
    doors = [(_doors(change.old, ipv6), _doors(change.new, ipv6)) for change in changes]
    if any(old != new for old, new in doors) and any(built.service.claimed for built in services.values()):
        patched[LDS] = _kept(before[LDS], _listeners(services, ipv6))
    else:
        patched[LDS] = _patched(before[LDS], doors)
    renamed = any((c.old and c.old.named) != (c.new and c.new.named) for c in changes)
    patched[NDS] = _kept(before[NDS], _names(services, ipv6)) if renamed else before[NDS]
    return _kept_whole(before, patched)


def _all(services: Mapping[str, BuiltService], type_url: str) -> dict[str, Entry]:
    return {name: each for built in services.values() for name, each in built.resources[type_url].items()}


def _listeners(services: Mapping[str, BuiltService], ipv6: bool) -> dict[str, Entry]:
    found = dict(_VIRTUAL_OUTBOUND if ipv6 else _VIRTUAL_OUTBOUND4)
    for host in sorted(services):
        for name, each in services[host].listeners(ipv6).items():
            found.setdefault(name, each)
    return found


def _names(services: Mapping[str, BuiltService], ipv6: bool) -> dict[str, Entry]:
    table = name_table((services[host].service for host in sorted(services)), ipv6)
    return {SINGLETON_NAMES[NDS]: entry(table)}


_Pairs = Sequence[tuple[Mapping[str, Entry], Mapping[str, Entry]]]


def _pairs(changes: Sequence[Change], type_url: str) -> _Pairs:
    return [
        (change.old.resources[type_url] if change.old else {}, change.new.resources[type_url] if change.new else {})
        for change in changes
    ]


def _doors(built: BuiltService | None, ipv6: bool) -> Mapping[str, Entry]:
    return built.listeners(ipv6) if built else {}


def _patched(before: Mapping[str, Entry], pairs: _Pairs) -> Mapping[str, Entry]:
    """``before`` with each pair's old entries replaced by its new ones; ``before`` itself where that is the same."""
    gone = {name for old, new in pairs for name in old.keys() - new.keys()}
    put = {n: e for _, new in pairs for n, e in new.items() if n in gone or before.get(n) != e}
    if not gone and not put:
        return before
    patched = Patched(before, before.mark if isinstance(before, Patched) else None, gone | put.keys())
    for name in gone:
        patched.pop(name, None)
    patched.update(put)
    return patched


def _kept(before: Mapping[str, Entry], new: Mapping[str, Entry]) -> Mapping[str, Entry]:
    return before if before == new else new


def _kept_whole(before: Resources, new: Resources) -> Resources:
    return before if all(before[type_url] is new[type_url] for type_url in new) else new


_NO_SERVICE = {m.name: entry(m) for m in (clusters.black_hole(), clusters.passthrough())}
_VIRTUAL_OUTBOUND4 = {m.name: entry(m) for m in [listeners.virtual_outbound(4)]}
_VIRTUAL_OUTBOUND = {m.name: entry(m) for m in map(listeners.virtual_outbound, (4, 6))}
