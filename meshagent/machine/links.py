"""Addresses, gateways, and routes and rules of ours, as the kernel lists them: rtnetlink(7) messages, read only."""

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from meshagent.machine.dumping import attributes, dump, number
from meshagent.model.address import IPAddress, IPNetwork
from meshagent.model.marks import ROUTE_PROTOCOL

MAIN_TABLE = 254
FAMILIES = (socket.AF_INET, socket.AF_INET6)

# include/uapi/linux/rtnetlink.h, if_link.h, if_addr.h, fib_rules.h
_GETLINK, _GETADDR, _GETROUTE, _GETRULE = 18, 22, 26, 34
_LINK = struct.Struct("=BxHiII")  # struct ifinfomsg
_ADDRESS = struct.Struct("=BBBBI")  # struct ifaddrmsg: family, prefix length, flags, scope, index
_ROUTE = struct.Struct("=BBBBBBBBI")  # struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags
_RULE = struct.Struct("=BBBBBBBBI")  # struct fib_rule_hdr
_HOP = struct.Struct("=HBBi")  # struct rtnexthop: length, flags, hops, interface
_IFNAME = 3
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_MULTIPATH, _RTA_TABLE = 1, 4, 5, 9, 15
_FRA_IIFNAME, _FRA_PRIORITY, _FRA_FWMARK, _FRA_TABLE, _FRA_PROTOCOL = 3, 6, 10, 15, 21
_KINDS = {1: "unicast", 2: "local"}
_SCOPE_GLOBAL = 0
_TENTATIVE_DADFAILED_DEPRECATED = 0x40 | 0x08 | 0x20


@dataclass(frozen=True, slots=True)
class Address:
    """A usable address of global scope and the interface that has it."""

    ip: IPAddress
    prefix_length: int
    interface: str


@dataclass(frozen=True, slots=True)
class Route:
    """``kind`` is ``local`` (deliver here) or ``unicast``; over ``device``, in ``table``; no gateway."""

    destination: IPNetwork
    device: str = "lo"
    table: int = MAIN_TABLE
    kind: str = "local"


@dataclass(frozen=True, slots=True)
class Rule:
    """Packets of this IP ``version`` with this firewall mark, that come in by ``device`` (empty: any; ``lo``: this
    host's own), are routed by ``table``."""

    version: int
    mark: int
    table: int
    priority: int
    device: str = ""


def addresses() -> Iterator[Address]:
    """Every address of global scope that can be used now. Raises ``OSError``, like everything here."""
    names = _names()
    for body in dump(socket.NETLINK_ROUTE, _GETADDR, _ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
        family, length, flags, scope, index = _ADDRESS.unpack_from(body)
        found = attributes(body, _ADDRESS.size)
        flags = number(found.get(_IFA_FLAGS)) or flags
        data = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)
        if family in FAMILIES and data and scope == _SCOPE_GLOBAL and not flags & _TENTATIVE_DADFAILED_DEPRECATED:
            yield Address(ip_address(data), length, names.get(index, ""))


def gateways() -> Iterator[IPAddress]:
    """Next hops of the default routes of both families, of all tables."""
    for header, found in _routes():
        if header[1] == 0:  # the length of the destination
            hops = (found.get(_RTA_GATEWAY), *_hops(found.get(_RTA_MULTIPATH, b"")))
            yield from (ip_address(hop) for hop in hops if hop)


def our_routes() -> list[Route]:
    """The routes whose protocol is ours."""
    ours = [(header, found) for header, found in _routes() if header[5] == ROUTE_PROTOCOL]
    names = _names() if ours else {}
    return [_route(header, found, names) for header, found in ours]


def our_rules() -> list[Rule]:
    """The rules whose protocol is ours."""
    return [rule for family in FAMILIES for rule in _rules(family)]


def _names() -> dict[int, str]:
    """Index -> name of every interface."""
    found = dump(socket.NETLINK_ROUTE, _GETLINK, _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0))
    names = {_LINK.unpack_from(body)[2]: attributes(body, _LINK.size).get(_IFNAME, b"") for body in found}
    return {index: name.rstrip(b"\0").decode(errors="replace") for index, name in names.items()}


def _routes() -> Iterator[tuple[tuple[int, ...], dict[int, bytes]]]:
    for family in FAMILIES:
        for body in dump(socket.NETLINK_ROUTE, _GETROUTE, _ROUTE.pack(family, *([0] * 8))):
            yield _ROUTE.unpack_from(body), attributes(body, _ROUTE.size)


def _hops(data: bytes) -> Iterator[bytes | None]:
    """The gateways of a route with several next hops."""
    at = 0
    while at + _HOP.size <= len(data):
        length = _HOP.unpack_from(data, at)[0]
        if length < _HOP.size:
            return
        yield attributes(data[at : at + length], _HOP.size).get(_RTA_GATEWAY)
        at += length + 3 & ~3


def _route(header: tuple[int, ...], found: dict[int, bytes], names: dict[int, str]) -> Route:
    family, length, table, kind = header[0], header[1], header[4], header[7]
    everything = b"\0" * (4 if family == socket.AF_INET else 16)
    destination = ip_network((found.get(_RTA_DST, everything), length))
    device = names.get(number(found.get(_RTA_OIF)), "")
    return Route(destination, device, number(found.get(_RTA_TABLE)) or table, _KINDS.get(kind, str(kind)))


def _rules(family: int) -> Iterator[Rule]:
    version = 4 if family == socket.AF_INET else 6
    for body in dump(socket.NETLINK_ROUTE, _GETRULE, _RULE.pack(family, *([0] * 8))):
        found = attributes(body, _RULE.size)
        if number(found.get(_FRA_PROTOCOL)) == ROUTE_PROTOCOL:
            table = number(found.get(_FRA_TABLE)) or _RULE.unpack_from(body)[4]
            device = found.get(_FRA_IIFNAME, b"").rstrip(b"\0").decode(errors="replace")
            yield Rule(version, number(found.get(_FRA_FWMARK)), table, number(found.get(_FRA_PRIORITY)), device)
