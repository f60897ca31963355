"""The registry's moving parts: an open announcement stream, a host while it is enrolled, and what follows from all."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from meshagent.hub.registry import kept
from meshagent.hub.registry.admission import Rivals
from meshagent.hub.registry.assemble import LiveHost
from meshagent.hub.store.rows import HostRow, ServiceRow
from meshagent.model.errors import MeshagentError
from meshagent.model.names import service_host
from meshagent.protocol.announce import Announced, AnnouncedService


@dataclass(eq=False, slots=True)
class Session:
    """One announcement stream of one enrolment. ``ended`` is set with ``reason`` when it must close."""

    host_id: int
    host_name: str
    generation: int = 0
    reason: str = ""
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def end(self, reason: str) -> None:
        """Close it; the first reason stays."""
        self.reason = self.reason or reason
        self.ended.set()


class SessionEnded(MeshagentError):  # noqa: N818 - what happened, not what went wrong
    """The stream was superseded, or its host is not enrolled any more; ``code`` says which."""


@dataclass(slots=True)
class Host:
    """``names`` are the service host names it serves, ``since`` when it first served each (epoch seconds, also of those
    it served before); ``deadline`` (monotonic) is set while its lease runs out."""

    row: HostRow
    announced: Announced | None = None
    accepted: tuple[AnnouncedService, ...] = ()
    names: frozenset[str] = frozenset()
    session: Session | None = None
    deadline: float | None = None
    stale: bool = False
    since: Mapping[str, float] = field(default_factory=dict)
    _live: LiveHost | None = field(default=None, init=False, repr=False)

    def live(self) -> LiveHost:
        """As the mesh is assembled from it; the same object until something in it changes."""
        known, connected = self._live, self.session is not None
        if (
            known is None
            or known.row is not self.row
            or known.announced is not self.announced
            or known.accepted is not self.accepted
            or known.connected is not connected
            or known.stale is not self.stale
            or known.since is not self.since
        ):
            known = LiveHost(self.row, self.announced, self.accepted, connected, self.stale, self.since)
            self._live = known
        return known

    def name_of(self, service: AnnouncedService, zone: str) -> str:
        """The service's host name in the mesh."""
        return service_host(service.declared.name, self.row.namespace, zone)


def says_again(host: Host, announced: Announced, services: Mapping[str, ServiceRow], zone: str) -> bool:
    """True when all of it is in force and written already, and nobody has to be asked: what hosts say after a restart.

    Whoever enrolled again meanwhile, perhaps as somebody else, is judged anew.
    """
    known, row = host.announced, host.row
    if known is None or announced.refused or host.accepted != announced.services:
        return False
    if replace(announced, generation=known.generation) != known:
        return False
    told = tuple(str(address) for address in announced.addresses), announced.boot_id, announced.agent_version
    if (row.addresses, row.boot_id, row.agent_version) != told or row.services is not None:
        return False
    owners = {services[name].service_account for name in host.names if name in services}
    named = {host.name_of(service, zone) for service in announced.services}
    return named == host.names <= services.keys() and owners <= {row.service_account}


def row_after(
    row: HostRow, announced: Announced | None, accepted: tuple[AnnouncedService, ...], since: Mapping[str, float]
) -> HostRow:
    """The host's row once this is in force; only accepted services are kept, so a restart admits nobody anew."""
    if announced is None:
        return replace(row, announcement=kept.to_bytes(kept.Kept(None, since)))
    return replace(
        row,
        announcement=kept.to_bytes(kept.Kept(replace(announced, services=accepted), since)),
        addresses=tuple(str(a) for a in announced.addresses),
        boot_id=announced.boot_id,
        agent_version=announced.agent_version,
    )


def rivals(
    announcing: Host, names: frozenset[str], hosts: Iterable[Host], services: Mapping[str, ServiceRow], zone: str
) -> dict[str, Rivals]:
    """What the others of ``hosts`` serve under ``names``."""
    found = {name: Rivals(services.get(name)) for name in names}
    for other in hosts:
        if other is announcing or not other.names & names:
            continue
        for service in other.accepted:
            name = other.name_of(service, zone)
            if known := found.get(name):
                ports = known.ports | {(service.declared.port, service.declared.protocol.value)}
                found[name] = Rivals(known.row, ports, known.served_by | {other.row.service_account})
    return found


def since_after(host: Host, names: frozenset[str], hosts: Iterable[Host], now: datetime) -> dict[str, float]:
    """``host.since`` once it serves ``names``: it comes after who serves a name already, even if ``now`` went back."""
    known = (other.since[name] for other in hosts for name in names & other.since.keys())
    return kept.first_seen(host.since, names, round(max(now.timestamp(), max(known, default=0.0) + 0.001), 3))
