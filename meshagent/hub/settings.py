"""What a hub is told when it starts, checked before anything is touched."""

from dataclasses import dataclass
from pathlib import Path

from meshagent.machine.netlink import addresses, preferred_source
from meshagent.model.address import HostPort, parse_host_port, parse_ip
from meshagent.model.errors import MeshagentError, UsageError
from meshagent.model.names import DEFAULT_ZONE, is_dns_name, is_label
from meshagent.model.paths import Paths
from meshagent.model.ports import CONTROL_PLANE, HUB_HTTP

#: Documentation addresses (RFC 5737, RFC 3849): asking which of ours would be used towards them follows the default
#: route and sends nothing.
_ANYWHERE4, _ANYWHERE6 = "192.0.2.1", "2001:db8::1"


@dataclass(frozen=True, slots=True)
class HubSettings:
    """``advertise`` is what join lines say; ``grace`` seconds from a host's silence to the end of its endpoints."""

    paths: Paths
    listen: tuple[HostPort, ...]
    advertise: HostPort
    trust_domain: str = "mesh.internal"
    zone: str = DEFAULT_ZONE
    root_namespace: str = "istio-system"
    database: Path | None = None
    grace: float = 15.0
    http: HostPort | None = None

    @property
    def store(self) -> Path:
        """The database file."""
        return self.database or self.paths.hub_state / "hub.db"

    @property
    def ca_directory(self) -> Path:
        """Where the CA's keys are."""
        return self.paths.hub_state / "ca"

    @classmethod
    def make(
        cls,
        paths: Paths,
        *,
        listen: str | None = None,
        advertise: str | None = None,
        trust_domain: str = "mesh.internal",
        zone: str = DEFAULT_ZONE,
        root_namespace: str = "istio-system",
        store: str | None = None,
        grace: float = 15.0,
        http: str | None = None,
    ) -> "HubSettings":
        """Settings from what a person typed; None = the default. Raises ``UsageError`` that names the wrong one."""
        for what, text in (("--trust-domain", trust_domain), ("--zone", zone)):
            if not is_dns_name(text):
                raise UsageError(
                    "bad-name", f"{what} {text[:80]!r} is not a domain name", hint="use a-z, 0-9, '-', '.'"
                )
        if not is_label(root_namespace):
            raise UsageError("bad-name", f"--root-namespace {root_namespace[:80]!r} is not a DNS label")
        where, database = _listen(listen), database_of(store)
        return cls(
            paths=paths,
            listen=where,
            advertise=parse_host_port(advertise, CONTROL_PLANE) if advertise else default_advertise(where),
            trust_domain=trust_domain,
            zone=zone,
            root_namespace=root_namespace,
            database=database,
            grace=grace,
            http=_http(http),
        )


def _listen(text: str | None) -> tuple[HostPort, ...]:
    """Every address of both families unless one is named; IPv6 only where this machine has it."""
    if text:
        return (parse_host_port(text, CONTROL_PLANE),)
    families = ("0.0.0.0", "::") if Path("/proc/net/if_inet6").exists() else ("0.0.0.0",)  # noqa: S104 - meant so
    return tuple(HostPort(host, CONTROL_PLANE) for host in families)


def _http(text: str | None) -> HostPort | None:
    """This machine only unless another address is named; ``off`` = nowhere."""
    return None if text == "off" else parse_host_port(text or f"127.0.0.1:{HUB_HTTP}", HUB_HTTP)


def database_of(text: str | None) -> Path | None:
    """The file that ``--store`` names; None = the default. Raises ``UsageError``."""
    if text is None:
        return None
    scheme, _, path = text.rpartition(":")
    if scheme not in ("", "sqlite") or not path.startswith("/"):
        raise UsageError("bad-store", f"--store {text[:80]!r} is not known", hint="write it like sqlite:/path/hub.db")
    return Path(path)


def default_advertise(listen: tuple[HostPort, ...]) -> HostPort:
    """The listened address when it is one, else the address of the default route, else the first global address."""
    port = listen[0].port
    named = parse_ip(listen[0].host)
    if named is None or not named.is_unspecified:
        return HostPort(listen[0].host, port)
    for destination in (_ANYWHERE4, _ANYWHERE6):
        address = parse_ip(destination)
        source = preferred_source(address) if address else None
        if source and not source.is_loopback:
            return HostPort(str(source), port)
    found = addresses()
    if not found:
        raise MeshagentError(
            "no-address", "this machine has no address that hosts could reach", hint="name one: --advertise HOST:PORT"
        )
    return HostPort(str(found[0].ip), port)
