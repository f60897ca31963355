"""Addresses, routes and rules of this network namespace; changed through pyroute2, links never.

Routes and rules we add carry ``ROUTE_PROTOCOL`` as their origin (rtm_protocol), which is how they are told from
everybody else's when they go. Calls take a few milliseconds and may be made from an event loop's thread.
"""

import asyncio
import contextlib
import errno
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from ipaddress import ip_address
from typing import Any, TypeVar

from meshagent.machine import links, pyroute, rtnetlink
from meshagent.machine.links import MAIN_TABLE, Address, Route, Rule
from meshagent.model.address import IPAddress
from meshagent.model.errors import MeshagentError

__all__ = [
    "MAIN_TABLE",
    "Address",
    "Route",
    "Rule",
    "addresses",
    "changes",
    "ensure_route",
    "ensure_rule",
    "our_routes",
    "our_rules",
    "preferred_source",
    "remove_ours",
    "remove_route",
    "set_ours",
]

T = TypeVar("T")

# include/uapi/linux/rtnetlink.h
_GROUPS = 0x10 | 0x100 | 0x40 | 0x400  # RTMGRP_IPV4_IFADDR, _IPV6_IFADDR, _IPV4_ROUTE, _IPV6_ROUTE
_GROUP_IPV4_RULE, _GROUP_IPV6_RULE = 8, 19


def addresses() -> tuple[Address, ...]:
    """This host's addresses of global scope that can be used now, IPv4 first; loopback's are not among them."""
    found = _read("list addresses", lambda: [each for each in links.addresses() if each.interface != "lo"])
    return tuple(sorted(found, key=lambda each: (each.ip.version, each.interface, int(each.ip))))


def gateways() -> tuple[IPAddress, ...]:
    """Next hops of the default routes of both families, of all tables."""
    return tuple(dict.fromkeys(_read("read the default routes", lambda: list(links.gateways()))))


def preferred_source(destination: IPAddress) -> IPAddress | None:
    """The address this host would use towards ``destination``; None when there is no route. Sends nothing."""
    family = socket.AF_INET6 if destination.version == 6 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(destination), 9))  # discard: connecting a datagram socket only asks the routing table
            return ip_address(probe.getsockname()[0].partition("%")[0])
    except OSError:
        return None


def ensure_route(route: Route) -> None:
    """Add the route as ours; harmless when it is there. Raises ``MeshagentError``, also when somebody else has it."""
    _with_netlink(f"add the route to {route.destination}", lambda ip: rtnetlink.add_route(ip, route))


def ensure_rule(rule: Rule) -> None:
    """Add the rule as ours; harmless when it is there. Raises ``MeshagentError``."""
    _with_netlink(f"add the IPv{rule.version} rule {rule.priority}", lambda ip: rtnetlink.add_rule(ip, rule))


def remove_route(route: Route) -> None:
    """Remove one route of ours; harmless when it isn't there."""
    _with_netlink(
        f"remove the route to {route.destination}",
        lambda ip: rtnetlink.absent_is_fine(ip.route, "del", **rtnetlink.route_request(ip, route)),
    )


def remove_ours() -> int:
    """Remove every route and rule whose protocol is ours, of all tables and both families; how many there were."""

    def remove(ip: Any) -> int:
        count = 0
        for family in rtnetlink.FAMILIES:
            for message in rtnetlink.our_rules(ip, family):
                rtnetlink.absent_is_fine(ip.rule, "del", **rtnetlink.same_rule(message))
                count += 1
            for message in rtnetlink.our_routes(ip, family):
                rtnetlink.absent_is_fine(ip.route, "del", **rtnetlink.same_route(message))
                count += 1
        return count

    if not our_routes() and not our_rules():
        return 0  # the usual case, which needs no pyroute2
    return _with_netlink("remove our routes and rules", remove)


def our_routes() -> tuple[Route, ...]:
    """The routes whose protocol is ours, as the kernel has them."""
    return tuple(_read("list our routes", links.our_routes))


def our_rules() -> tuple[Rule, ...]:
    """The rules whose protocol is ours, as the kernel has them."""
    return tuple(_read("list our rules", links.our_rules))


def set_ours(routes: Iterable[Route], rules: Iterable[Rule]) -> None:
    """Make our routes and rules exactly these: what is missing is added first, what is too many then removed."""
    wanted_routes, wanted_rules = set(routes), set(rules)
    for route in wanted_routes:
        ensure_route(route)
    for rule in wanted_rules:
        ensure_rule(rule)
    for route in set(our_routes()) - wanted_routes:
        remove_route(route)
    for rule in set(our_rules()) - wanted_rules:
        _remove_rule(rule)


def _remove_rule(rule: Rule) -> None:
    _with_netlink(
        f"remove the IPv{rule.version} rule {rule.priority}",
        lambda ip: rtnetlink.absent_is_fine(ip.rule, "del", **rtnetlink.rule_request(rule)),
    )


def _read(doing: str, ask: Callable[[], T]) -> T:
    try:
        return ask()
    except OSError as error:
        raise _explained(doing, error) from error


def _with_netlink(doing: str, ask: Callable[[Any], T]) -> T:
    IPRoute, NetlinkError = pyroute.iproute(), pyroute.netlink_error()  # noqa: N806  # they are classes

    def talk() -> T:
        with IPRoute() as ip:
            return ask(ip)

    try:
        return _off_loop(talk)
    except (NetlinkError, OSError) as error:
        raise _explained(doing, error) from error


def _explained(doing: str, error: Exception) -> MeshagentError:
    why = error.args[1] if len(error.args) > 1 else error
    hint = "run it as root" if error.args and error.args[0] in (errno.EPERM, errno.EACCES) else ""
    return MeshagentError("netlink", f"could not {doing}: {why}", hint=hint)


def _off_loop(function: Callable[[], T]) -> T:
    """Call ``function`` where no event loop runs: pyroute2 0.9 drives one of its own even for plain calls."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return function()
    result: list[T] = []
    failure: list[BaseException] = []

    def call() -> None:
        try:
            result.append(function())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=call, name="netlink")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


async def changes(settle: float = 0.05) -> AsyncIterator[None]:
    """Yields after addresses, routes or rules of this namespace changed, at most once per ``settle`` seconds.

    What changed must be read anew: the kernel may drop messages when many come at once.
    """
    loop, changed = asyncio.get_running_loop(), asyncio.Event()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as watch:
        watch.setblocking(False)
        watch.bind((0, _GROUPS))
        for group in (_GROUP_IPV4_RULE, _GROUP_IPV6_RULE):
            watch.setsockopt(270, 1, struct.pack("i", group))  # SOL_NETLINK, NETLINK_ADD_MEMBERSHIP
        loop.add_reader(watch, _drain, watch, changed)
        try:
            while True:
                await changed.wait()
                await asyncio.sleep(settle)
                changed.clear()
                yield
        finally:
            loop.remove_reader(watch)


def _drain(watch: socket.socket, changed: asyncio.Event) -> None:
    changed.set()
    with contextlib.suppress(BlockingIOError):
        while True:
            try:
                watch.recv(65536)
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # messages were lost: a change all the same
                    raise
