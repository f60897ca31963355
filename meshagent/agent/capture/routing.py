"""Routes and rules that capture needs, from an ``Intent``. Pure.

- A virtual range needs a route, else connect() fails before the packet meets any rule. ``dev lo`` gives the right
  source address on both families and needs no dummy device; a ``local`` route would reach programs that listen on
  every address while capture is off.
- The proxy speaks to the application from its caller's address; answers carry CLIENT_SOURCE_MARK (PUBLISHED_MARK when
  they come in from a container) and must be delivered here: a rule for each mark, one table with ``local default dev
  lo``. See model/marks.py for the rule that IPv4 needs before.

No sysctl is touched: seen to work with rp_filter 0, 1 and 2 and src_valid_mark 0 and 1.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from meshagent.agent.capture.values import Intent, Ipv6, Mode
from meshagent.model.address import VIRTUAL4, VIRTUAL6, IPNetwork
from meshagent.model.marks import CLIENT_SOURCE_MARK, PUBLISHED_MARK, ROUTE_TABLE, RULE_PRIORITY

MAIN_TABLE = 254  # RT_TABLE_MAIN


@dataclass(frozen=True, slots=True)
class Route:
    """``ip route add [local] NETWORK dev lo table TABLE proto ROUTE_PROTOCOL``."""

    network: IPNetwork
    table: int = MAIN_TABLE
    local: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """``ip -4|-6 rule add [iif DEVICE] fwmark MARK lookup TABLE priority PRIORITY``; ``family`` is 4 or 6."""

    family: int
    mark: int = CLIENT_SOURCE_MARK
    table: int = ROUTE_TABLE
    priority: int = RULE_PRIORITY
    device: str = ""


@dataclass(frozen=True, slots=True)
class Routing:
    """All routes and rules of ours that should exist, or do."""

    routes: frozenset[Route] = frozenset()
    rules: frozenset[Rule] = frozenset()


def plan(intent: Intent) -> Routing:
    """Everything for this intent; nothing at all where capture is off."""
    if intent.mode is Mode.OFF:
        return Routing()
    return Routing(frozenset(_routes(intent)), frozenset(_rules(intent)))


def _rules(intent: Intent) -> Iterable[Rule]:
    for family in _families(intent):
        yield Rule(family)
        yield Rule(family, PUBLISHED_MARK, priority=RULE_PRIORITY + 1)
        if family == 4:  # IPv6 has no src_valid_mark
            yield Rule(family, PUBLISHED_MARK, MAIN_TABLE, RULE_PRIORITY, device="lo")


def _routes(intent: Intent) -> Iterable[Route]:
    yield Route(VIRTUAL4)
    if intent.ipv6_usable and intent.ipv6 is not Ipv6.LEAVE:
        yield Route(VIRTUAL6)
    for family in _families(intent):
        everything = IPv4Network("0.0.0.0/0") if family == 4 else IPv6Network("::/0")
        yield Route(everything, ROUTE_TABLE, local=True)


def _families(intent: Intent) -> tuple[int, ...]:
    return (4, 6) if intent.ipv6_usable else (4,)
