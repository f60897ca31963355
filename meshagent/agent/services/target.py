"""Where the mesh reaches a process, and where its health check goes: decided from its listening sockets. Pure.

A process on a wildcard address is reached at the host's own address, so that it may see its callers' addresses; one
on loopback only at loopback (the kernel refuses foreign sources there); one on a certain address at that address.
A check goes to loopback wherever the process listens there: no firewall and no address change is in its way.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Protocol

from meshagent.model.address import IPAddress

LOOPBACK4, LOOPBACK6 = IPv4Address("127.0.0.1"), IPv6Address("::1")


class Where(StrEnum):
    """On what a process listens."""

    NOWHERE = "nowhere"
    LOOPBACK = "loopback"
    WILDCARD = "wildcard"
    SPECIFIC = "specific"


class Listening(Protocol):
    """One listening TCP socket (as ``machine.sockets.Listener``); ``dual``: an IPv6 wildcard that also takes IPv4."""

    @property
    def ip(self) -> IPAddress: ...
    @property
    def port(self) -> int: ...
    @property
    def dual(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Target:
    """``mesh``: where the local proxy connects on a caller's behalf; ``check``: where the agent's check connects."""

    where: Where
    mesh: IPAddress
    check: IPAddress


def decide_target(port: int, sockets: Iterable[Listening], addresses: Sequence[IPAddress]) -> Target:
    """The target for ``port``; ``addresses`` are the host's own, preferred first."""
    mine = [socket for socket in sockets if socket.port == port]
    wildcards = [socket for socket in mine if socket.ip.is_unspecified]
    specific = [socket.ip for socket in mine if not socket.ip.is_unspecified and not _is_loopback(socket.ip)]
    loopback = [_plain(socket.ip) for socket in mine if _is_loopback(socket.ip)]
    if wildcards:
        return _wildcard(wildcards, addresses)
    if specific:
        best = min((_plain(ip) for ip in specific), key=lambda ip: _preference(ip, addresses))
        return Target(Where.SPECIFIC, best, best)
    if loopback:
        here = {ip.version for ip in addresses}  # the proxy calls from an address of this host, so it must have one
        best = min(loopback, key=lambda ip: (ip.version not in here, ip.version, ip.packed))
        return Target(Where.LOOPBACK, best, best)
    return Target(Where.NOWHERE, addresses[0] if addresses else LOOPBACK4, LOOPBACK4)


def _wildcard(sockets: Sequence[Listening], addresses: Sequence[IPAddress]) -> Target:
    families = {socket.ip.version for socket in sockets}
    if any(socket.dual for socket in sockets):
        families.add(4)
    loopback: IPAddress = LOOPBACK4 if 4 in families else LOOPBACK6
    own = next((ip for ip in addresses if ip.version in families), loopback)
    return Target(Where.WILDCARD, own, loopback)


def _preference(ip: IPAddress, addresses: Sequence[IPAddress]) -> tuple[int, int, bytes]:
    rank = addresses.index(ip) if ip in addresses else len(addresses)
    return rank, ip.version, ip.packed


def _plain(ip: IPAddress) -> IPAddress:
    """An IPv4 address in IPv6 form (``::ffff:10.0.0.1``) as what it is."""
    return (ip.ipv4_mapped or ip) if isinstance(ip, IPv6Address) else ip


def _is_loopback(ip: IPAddress) -> bool:
    return _plain(ip).is_loopback
