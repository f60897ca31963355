"""Which of a host's announced services are accepted, and why not. Pure.

A service host name belongs to one service account: its hosts serve it together, everybody else is refused. The first
host of a service says which port and protocol it has; others must say the same. What makes no sense in itself was
refused before (``protocol.announce``).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from meshagent.hub.store.rows import ServiceRow
from meshagent.model.names import service_host
from meshagent.protocol.announce import AnnouncedService

#: How long a service account keeps a name that none of its (still enrolled) hosts serves: a week-end and a day.
OWNER_HOLD = timedelta(days=3)


@dataclass(frozen=True, slots=True)
class Rivals:
    """What decides about one service host name: its row, and what *other* hosts serve under it now."""

    row: ServiceRow | None = None
    ports: frozenset[tuple[int, str]] = frozenset()
    served_by: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Announcer:
    """Who announces. ``allowed`` None = any service; ``enrolled_accounts`` of its namespace, over all hosts."""

    namespace: str
    service_account: str
    allowed: tuple[str, ...] | None = None
    enrolled_accounts: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Verdict:
    """``host`` is the service's name in the mesh; ``reason`` empty = accepted."""

    service: AnnouncedService
    host: str
    reason: str = ""

    @property
    def accepted(self) -> bool:
        return not self.reason


def admit(
    announcer: Announcer,
    services: tuple[AnnouncedService, ...],
    rivals: Mapping[str, Rivals],
    zone: str,
    now: datetime,
) -> tuple[Verdict, ...]:
    """One verdict per service, in order. ``rivals`` by service host name; absent = nobody has it."""
    verdicts = []
    for service in services:
        host = service_host(service.declared.name, announcer.namespace, zone)
        known = rivals.get(host, Rivals())
        reason = _not_allowed(announcer, service) or _taken(announcer, known, now) or _different(service, known)
        verdicts.append(Verdict(service, host, reason))
    return tuple(verdicts)


def _not_allowed(announcer: Announcer, service: AnnouncedService) -> str:
    if announcer.allowed is None or service.declared.name in announcer.allowed:
        return ""
    return f"this host's token allows only {', '.join(announcer.allowed) or 'no services'}"


def _taken(announcer: Announcer, rivals: Rivals, now: datetime) -> str:
    others = rivals.served_by - {announcer.service_account}
    if others:
        return f"the name is taken by service account {min(others)}"
    row = rivals.row
    if row is None or row.service_account in ("", announcer.service_account):
        return ""
    held = row.service_account in announcer.enrolled_accounts and now < row.last_used + OWNER_HOLD
    return f"the name is taken by service account {row.service_account}" if held else ""


def _different(service: AnnouncedService, rivals: Rivals) -> str:
    own = (service.declared.port, service.declared.protocol.value)
    if rivals.ports <= {own}:
        return ""
    theirs = ", ".join(f"{port}/{protocol}" for port, protocol in sorted(rivals.ports))
    return f"other hosts serve this name with {theirs}"
