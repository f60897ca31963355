"""Addresses as the mesh sees them: host:port pairs, virtual ranges, captured addresses."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from meshagent.model.errors import UsageError

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

#: Virtual addresses of services. 240.0.0.0/4 is reserved (RFC 1112 section 4), so no real network collides;
#: 2001:2::/48 is the benchmarking range (RFC 5180), never routed on the Internet.
VIRTUAL4 = IPv4Network("240.240.0.0/16")
VIRTUAL6 = IPv6Network("2001:2::/48")
_VIRTUAL4, _VIRTUAL6 = int(VIRTUAL4.network_address) >> 16, int(VIRTUAL6.network_address) >> 80


@dataclass(frozen=True, slots=True)
class HostPort:
    """A ``host:port`` as typed by a person; ``host`` is a name, an IPv4 or an (unbracketed) IPv6 address."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_host_port(text: str, default_port: int | None = None) -> HostPort:
    """``web:80``, ``10.0.0.1:80``, ``[2001:db8::1]:80``, with ``default_port`` also without ``:port``.

    Raises ``UsageError`` for anything else.
    """
    host, port_text = _split(text)
    if not port_text and default_port is not None:
        port_text = str(default_port)
    if not host or any(c.isspace() or ord(c) < 33 for c in host) or len(host) > 253:
        raise UsageError("bad-address", f"{text!r} is not HOST:PORT", hint="write it like hub.example:15012")
    if not (port_text.isascii() and port_text.isdigit() and 1 <= int(port_text) <= 65535):
        raise UsageError("bad-port", f"{text!r} has no valid port", hint="a port is a number from 1 to 65535")
    return HostPort(host, int(port_text))


def _split(text: str) -> tuple[str, str]:
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        return host, rest.removeprefix(":")
    if text.count(":") > 1:  # a bare IPv6 address carries no port
        return text, ""
    host, _, port = text.partition(":")
    return host, port


@dataclass(frozen=True, slots=True, order=True)
class MeshAddress:
    """One address and TCP port that belongs to the mesh: Envoy has a listener for exactly this pair."""

    ip: IPAddress
    port: int

    @property
    def virtual(self) -> bool:
        """True for an address of the mesh's own ranges, False for a claimed literal."""
        number = int(self.ip)  # asked of each of thousands: ``in`` takes five times as long
        return number >> 16 == _VIRTUAL4 if self.ip.version == 4 else number >> 80 == _VIRTUAL6

    @property
    def place(self) -> tuple[int, int, int]:
        """Where it stands in order, IPv4 first; numbers compare ten times as fast as addresses."""
        return self.ip.version, int(self.ip), self.port


def parse_ip(text: str) -> IPAddress | None:
    """The address, or None when ``text`` is not an IP address (zone ids are not accepted)."""
    if "%" in text:
        return None
    try:
        return IPv6Address(text) if ":" in text else IPv4Address(text)  # ip_address tries both: twice as slow for IPv6
    except ValueError:
        return None
