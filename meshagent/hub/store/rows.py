"""What the hub keeps, row by row: frozen values without any knowledge of the database. Times are aware UTC."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class HostStatus(StrEnum):
    """``LEFT`` gave its enrolment back, ``REPLACED`` was taken over by a token that may, ``REVOKED`` by an operator."""

    ACTIVE = "active"
    LEFT = "left"
    REPLACED = "replaced"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class RootRow:
    """A root certificate. The key lives in a file of its own, named after ``fingerprint`` (SHA-256 of the DER, hex)."""

    fingerprint: str
    certificate_pem: str
    created: datetime
    active: bool = True


@dataclass(frozen=True, slots=True)
class TokenRow:
    """An enrolment token; of the secret only ``protocol.enrol.secret_hash`` is kept.

    ``host`` and ``cidrs`` empty = not bound.
    ``services`` None = any of its namespace; else the only ones its hosts may announce.
    """

    id: str
    secret_sha256: str
    namespace: str
    service_account: str
    created: datetime
    expires: datetime
    uses: int = 1
    host: str = ""
    cidrs: tuple[str, ...] = ()
    services: tuple[str, ...] | None = None
    replace: bool = False
    revoked: datetime | None = None


@dataclass(frozen=True, slots=True)
class TokenUseRow:
    """One use of a token by one host key (SHA-256 of its SubjectPublicKeyInfo, hex); the same key is the same use."""

    token_id: str
    host_key_sha256: str
    host_name: str
    at: datetime


@dataclass(frozen=True, slots=True)
class HostRow:
    """One enrolment of a host. ``id`` tells enrolments under one name apart; at most one of a name is ``ACTIVE``.

    ``services`` as in ``TokenRow``. ``announcement`` is the last announced message, empty after a goodbye.
    """

    id: int
    name: str
    namespace: str
    service_account: str
    host_key_pem: str
    host_key_sha256: str
    created: datetime
    last_seen: datetime
    status: HostStatus = HostStatus.ACTIVE
    services: tuple[str, ...] | None = None
    addresses: tuple[str, ...] = ()
    boot_id: str = ""
    agent_version: str = ""
    announcement: bytes = b""


#: Fields of a host that its own announcements change; all others change by enrolment and operators only.
ANNOUNCED = ("addresses", "boot_id", "agent_version", "announcement")


@dataclass(frozen=True, slots=True)
class CertificateRow:
    """A certificate we issued: ``serial`` (lower-case hex, no leading zeros) names the enrolment on later calls."""

    serial: str
    host_id: int
    not_after: datetime


@dataclass(frozen=True, slots=True)
class ServiceRow:
    """A service host name: its virtual address (``index`` into both ranges) and its owner.

    ``last_used`` is when an announcement or ServiceEntry of it was last seen; ``service_account`` empty = owned by a
    ServiceEntry only. Rows stay, so that a name keeps its address.
    """

    host: str
    index: int
    namespace: str
    service_account: str
    last_used: datetime


@dataclass(frozen=True, slots=True)
class ResourceRow:
    """An applied resource: ``spec`` is canonical JSON as validated, ``version`` counts its changes from 1."""

    kind: str
    namespace: str
    name: str
    api_version: str
    spec: str
    labels: str
    version: int
    created: datetime
    changed: datetime


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One attempt worth remembering: who from where did what, with which outcome. Never a secret."""

    at: datetime
    action: str
    outcome: str
    subject: str
    source: str
    detail: str
