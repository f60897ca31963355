"""Services as a host declares them, and how they are doing."""

from dataclasses import dataclass, field
from enum import StrEnum


class ServiceProtocol(StrEnum):
    """What is spoken on a service's port; more than ``tcp`` buys metrics, routing and identity headers."""

    HTTP = "http"
    HTTP2 = "http2"
    GRPC = "grpc"
    TCP = "tcp"
    TLS = "tls"
    REDIS = "redis"
    MYSQL = "mysql"
    POSTGRES = "postgres"
    MONGO = "mongo"

    @property
    def is_http(self) -> bool:
        """True where Envoy's HTTP connection manager serves it."""
        return self in (ServiceProtocol.HTTP, ServiceProtocol.HTTP2, ServiceProtocol.GRPC)


@dataclass(frozen=True, slots=True)
class Check:
    """A health check of the process itself. ``kind`` is ``tcp`` or ``http``; ``path`` only for ``http``; seconds."""

    kind: str = "tcp"
    path: str = "/"
    interval: float = 10.0
    timeout: float = 1.0
    healthy: int = 1
    unhealthy: int = 3


@dataclass(frozen=True, slots=True)
class DeclaredService:
    """One document of ``services.d``. ``priority`` 0 serves, 1 stands by; ``site`` empty means the host's locality."""

    name: str
    port: int
    target_port: int
    protocol: ServiceProtocol = ServiceProtocol.TCP
    labels: tuple[tuple[str, str], ...] = ()
    check: Check = field(default_factory=Check)
    weight: int = 100
    priority: int = 0
    site: str = ""


@dataclass(frozen=True, slots=True)
class ServiceHealth:
    """The tracker's verdict on one service; ``reason`` is empty while healthy."""

    healthy: bool
    reason: str = ""
