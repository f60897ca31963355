"""Routes and rules as pyroute2 asks the kernel for them, and as the kernel tells them: rtnetlink(7) messages."""

import errno
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

from meshagent.machine import pyroute
from meshagent.model.address import IPNetwork
from meshagent.model.errors import MeshagentError
from meshagent.model.marks import ROUTE_PROTOCOL

MAIN_TABLE = 254
# include/uapi/linux/rtnetlink.h
_UNICAST, _LOCAL = 1, 2
FAMILIES = (socket.AF_INET, socket.AF_INET6)


@dataclass(frozen=True, slots=True)
class Route:
    """``kind`` is ``local`` (deliver here) or ``unicast``; over ``device``, in ``table``; no gateway."""

    destination: IPNetwork
    device: str = "lo"
    table: int = MAIN_TABLE
    kind: str = "local"


@dataclass(frozen=True, slots=True)
class Rule:
    """Packets of this IP ``version`` with this firewall mark are routed by ``table``."""

    version: int
    mark: int
    table: int
    priority: int


def route_request(ip: Any, route: Route) -> dict[str, Any]:
    links = ip.link_lookup(ifname=route.device)
    if not links:
        raise MeshagentError("no-interface", f"there is no interface {route.device}")
    host = {"scope": "host"} if route.kind == "local" and route.destination.version == 4 else {}
    return {
        "family": family(route.destination.version),
        "dst": str(route.destination),
        "type": route.kind,
        "oif": links[0],
        "table": route.table,
        "proto": ROUTE_PROTOCOL,
        **host,
    }


def rule_request(rule: Rule) -> dict[str, Any]:
    return {
        "family": family(rule.version),
        "fwmark": rule.mark,
        "table": rule.table,
        "priority": rule.priority,
        "protocol": ROUTE_PROTOCOL,
    }


def add_route(ip: Any, route: Route) -> None:
    """Add unless it is there as ours. Not "replace": it doubles IPv6 local routes and takes others' IPv4 routes."""
    if present(ip.route, "add", **route_request(ip, route)) and route not in read_routes(ip):
        raise MeshagentError(
            "route-taken",
            f"table {route.table} already has another route to {route.destination}",
            hint=f"see ip route show table {route.table}",
        )


def add_rule(ip: Any, rule: Rule) -> None:
    present(ip.rule, "add", **rule_request(rule))


def read_routes(ip: Any) -> list[Route]:
    names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in ip.get_links()}
    return [read_route(message, names) for version in FAMILIES for message in our_routes(ip, version)]


def present(call: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
    """Make the call; True when the kernel says that such a thing exists already."""
    NetlinkError = pyroute.netlink_error()  # noqa: N806  # it is a class

    try:
        call(*args, **kwargs)
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise
        return True
    return False


def our_rules(ip: Any, family: int) -> Iterator[Any]:
    return (message for message in ip.get_rules(family=family) if message.get_attr("FRA_PROTOCOL") == ROUTE_PROTOCOL)


def our_routes(ip: Any, family: int) -> list[Any]:
    return [message for message in ip.get_routes(family=family) if message["proto"] == ROUTE_PROTOCOL]


def same_rule(message: Any) -> dict[str, Any]:
    return {
        "family": message["family"],
        "fwmark": message.get_attr("FRA_FWMARK"),
        "table": message.get_attr("FRA_TABLE"),
        "priority": message.get_attr("FRA_PRIORITY"),
    }


def same_route(message: Any) -> dict[str, Any]:
    return {
        "family": message["family"],
        "dst": _destination(message),
        "type": message["type"],
        "scope": message["scope"],
        "oif": message.get_attr("RTA_OIF"),
        "table": message.get_attr("RTA_TABLE"),
        "priority": message.get_attr("RTA_PRIORITY") or 0,
        "proto": ROUTE_PROTOCOL,
    }


def _destination(message: Any) -> str:
    everything = "0.0.0.0" if message["family"] == socket.AF_INET else "::"  # noqa: S104 (a prefix, nothing is bound)
    return f"{message.get_attr('RTA_DST') or everything}/{message['dst_len']}"


def read_route(message: Any, names: dict[int, str]) -> Route:
    kind = {_UNICAST: "unicast", _LOCAL: "local"}.get(message["type"], str(message["type"]))
    device = names.get(message.get_attr("RTA_OIF") or 0, "")
    return Route(ip_network(_destination(message)), device, message.get_attr("RTA_TABLE"), kind)


def read_rule(message: Any) -> Rule:
    version = 4 if message["family"] == socket.AF_INET else 6
    mark, table = message.get_attr("FRA_FWMARK") or 0, message.get_attr("FRA_TABLE")
    return Rule(version, mark, table, message.get_attr("FRA_PRIORITY") or 0)


def family(version: int) -> int:
    return socket.AF_INET if version == 4 else socket.AF_INET6


def absent_is_fine(call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    NetlinkError = pyroute.netlink_error()  # noqa: N806  # it is a class

    try:
        call(*args, **kwargs)
    except NetlinkError as error:
        if error.code not in (errno.ENOENT, errno.ESRCH):
            raise
