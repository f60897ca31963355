"""What an operator may set in ``agent.yaml``, as frozen values; the defaults here are the product's defaults."""

from dataclasses import dataclass, field
from enum import StrEnum

from meshagent.model.address import HostPort, IPAddress, IPNetwork
from meshagent.model.ports import METRICS
from meshagent.model.posture import Posture


class OutboundScope(StrEnum):
    """Which outbound connections enter the mesh: those to mesh addresses, or everything that leaves."""

    MESH = "mesh"
    ALL = "all"


class InboundScope(StrEnum):
    """Which local ports the mesh looks after: the declared services', or every listening one."""

    DECLARED = "declared"
    ALL = "all"


class Backend(StrEnum):
    """How rules reach the kernel; ``auto`` takes nftables where the kernel has it."""

    AUTO = "auto"
    NFT = "nft"
    IPTABLES = "iptables"


class RedirectMode(StrEnum):
    """How inbound connections are redirected, where they are at all."""

    AUTO = "auto"
    TPROXY = "tproxy"
    REDIRECT = "redirect"


class FailurePolicy(StrEnum):
    """What new connections do while the proxy is down; ``auto`` = closed in strict, open otherwise."""

    AUTO = "auto"
    OPEN = "open"
    CLOSED = "closed"


class Ipv6Mode(StrEnum):
    """IPv6 is always decided: captured like IPv4, left alone, or refused."""

    AUTO = "auto"
    CAPTURE = "capture"
    LEAVE = "leave"
    REFUSE = "refuse"


class DnsMode(StrEnum):
    """How a query of this host reaches the agent (docs: names)."""

    AUTO = "auto"
    RESOLVED = "resolved"
    CAPTURE = "capture"
    NAMESERVER = "nameserver"
    OFF = "off"


class KeyType(StrEnum):
    """The workload key made at each rotation."""

    ECDSA_P256 = "ecdsa-p256"
    ECDSA_P384 = "ecdsa-p384"
    RSA_2048 = "rsa-2048"
    RSA_3072 = "rsa-3072"
    RSA_4096 = "rsa-4096"


class LogLevel(StrEnum):
    """The least severe line that is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """``auto`` = the journal's own form under systemd, else key=value."""

    AUTO = "auto"
    JOURNAL = "journal"
    KV = "kv"
    JSON = "json"


@dataclass(frozen=True, slots=True, order=True)
class PortRange:
    """TCP ports ``first`` to ``last``, both included; a single port is a range of one."""

    first: int
    last: int

    def __contains__(self, port: object) -> bool:
        return isinstance(port, int) and self.first <= port <= self.last

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


@dataclass(frozen=True, slots=True)
class Exclude:
    """What is never captured: destination ports and networks, users and groups by number, systemd units, interfaces."""

    ports: tuple[PortRange, ...] = ()
    cidrs: tuple[IPNetwork, ...] = ()
    uids: tuple[int, ...] = ()
    gids: tuple[int, ...] = ()
    units: tuple[str, ...] = ()
    interfaces: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CaptureConfig:
    """What is captured and how. ``units``: only these are in the mesh (empty = all programs); ``bridges``: also what
    is forwarded from these; ``force_ports``: captured although they would be spared.
    """

    outbound: OutboundScope = OutboundScope.MESH
    inbound: InboundScope = InboundScope.DECLARED
    backend: Backend = Backend.AUTO
    mode: RedirectMode = RedirectMode.AUTO
    on_proxy_failure: FailurePolicy = FailurePolicy.AUTO
    ipv6: Ipv6Mode = Ipv6Mode.AUTO
    exclude: Exclude = field(default_factory=Exclude)
    units: tuple[str, ...] = ()
    bridges: tuple[str, ...] = ()
    force_ports: tuple[PortRange, ...] = ()


@dataclass(frozen=True, slots=True)
class DnsConfig:
    """How names are answered here."""

    mode: DnsMode = DnsMode.AUTO


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """The local Envoy. ``binary`` empty = the packaged one; ``memory`` in bytes, 0 = from its cgroup or the host;
    ``allow_version`` names one untested Envoy version that is accepted all the same.
    """

    binary: str = ""
    user: str = "meshagent-proxy"
    concurrency: int = 2
    memory: int = 0
    allow_version: str = ""


@dataclass(frozen=True, slots=True)
class IdentityConfig:
    """The workload key."""

    key_type: KeyType = KeyType.ECDSA_P256


@dataclass(frozen=True, slots=True)
class LogConfig:
    """What is written where."""

    level: LogLevel = LogLevel.INFO
    format: LogFormat = LogFormat.AUTO


_METRICS_LISTEN = HostPort("127.0.0.1", METRICS)


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    """Where metrics are served; ``listen`` None = nowhere."""

    listen: HostPort | None = _METRICS_LISTEN


@dataclass(frozen=True, slots=True)
class LastKnownConfig:
    """What this host serves from while the control plane is away; ``max_age`` in seconds, 0 = however old."""

    max_age: int = 0


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """The whole of ``agent.yaml``.

    ``hub`` empty = the one this host enrolled with; ``name`` empty = the host's own; ``locality`` is ``region/zone``;
    ``advertise`` empty = the addresses of the interface that reaches the hub.
    """

    hub: tuple[HostPort, ...] = ()
    name: str = ""
    posture: Posture = Posture.PERMISSIVE
    locality: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    advertise: tuple[IPAddress, ...] = ()
    capture: CaptureConfig = field(default_factory=CaptureConfig)
    dns: DnsConfig = field(default_factory=DnsConfig)
    proxy: ProxyConfig = field(default_factory=ProxyConfig)
    identity: IdentityConfig = field(default_factory=IdentityConfig)
    log: LogConfig = field(default_factory=LogConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    last_known: LastKnownConfig = field(default_factory=LastKnownConfig)
