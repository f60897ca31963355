"""Routes and rules as pyroute2 asks the kernel to change them; reading them is in ``links.py``."""

import errno
import socket
from collections.abc import Callable, Iterator
from typing import Any

from meshagent.machine import links, pyroute
from meshagent.machine.links import FAMILIES, MAIN_TABLE, Route, Rule
from meshagent.model.errors import MeshagentError
from meshagent.model.marks import ROUTE_PROTOCOL

__all__ = ["FAMILIES", "MAIN_TABLE", "Route", "Rule"]


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
        **_from(rule.device),
    }


def _from(device: str | None) -> dict[str, str]:
    return {"iifname": device} if device else {}


def add_route(ip: Any, route: Route) -> None:
    """Add unless it is there as ours. Not "replace": it doubles IPv6 local routes and takes others' IPv4 routes."""
    if present(ip.route, "add", **route_request(ip, route)) and route not in links.our_routes():
        raise MeshagentError(
            "route-taken",
            f"table {route.table} already has another route to {route.destination}",
            hint=f"see ip route show table {route.table}",
        )


def add_rule(ip: Any, rule: Rule) -> None:
    present(ip.rule, "add", **rule_request(rule))


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
        **_from(message.get_attr("FRA_IIFNAME")),
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


def family(version: int) -> int:
    return socket.AF_INET if version == 4 else socket.AF_INET6


def absent_is_fine(call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    NetlinkError = pyroute.netlink_error()  # noqa: N806  # it is a class

    try:
        call(*args, **kwargs)
    except NetlinkError as error:
        if error.code not in (errno.ENOENT, errno.ESRCH):
            raise
