"""The registry's moving parts: an open announcement stream, and a host while it is enrolled."""

import asyncio
from dataclasses import dataclass, field, replace

from meshagent.hub.registry import kept
from meshagent.hub.registry.assemble import LiveHost
from meshagent.hub.store.rows import HostRow
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
    """``names`` are the service host names it serves; ``deadline`` (monotonic) is set while its lease runs out."""

    row: HostRow
    announced: Announced | None = None
    accepted: tuple[AnnouncedService, ...] = ()
    names: frozenset[str] = frozenset()
    session: Session | None = None
    deadline: float | None = None
    stale: bool = False

    def live(self) -> LiveHost:
        """As the mesh is assembled from it."""
        return LiveHost(self.row, self.announced, self.accepted, self.session is not None, self.stale)

    def name_of(self, service: AnnouncedService, zone: str) -> str:
        """The service's host name in the mesh."""
        return service_host(service.declared.name, self.row.namespace, zone)


def row_after(row: HostRow, announced: Announced | None, accepted: tuple[AnnouncedService, ...]) -> HostRow:
    """The host's row once this is in force; only accepted services are kept, so a restart admits nobody anew."""
    if announced is None:
        return replace(row, announcement=b"")
    return replace(
        row,
        announcement=kept.to_bytes(replace(announced, services=accepted)),
        addresses=tuple(str(a) for a in announced.addresses),
        boot_id=announced.boot_id,
        agent_version=announced.agent_version,
    )
