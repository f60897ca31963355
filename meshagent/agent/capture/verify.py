"""What the kernel really holds: is it what we put there, who calls in plain text, which rule is hit how often. Pure.

Input is the guard's listing, libnftables-json(5) as text.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from meshagent.agent.capture.nft import CALLER_SETS, CALLERS_TIMEOUT
from meshagent.guard import readback
from meshagent.model.address import IPAddress, parse_ip


class Sync(StrEnum):
    """How the kernel's table compares with what was put there (the guard's own words)."""

    EQUAL = "equal"
    CHANGED = "changed"
    MISSING = "missing"


_CHAIN = re.compile(r"\s*chain (\S+) \{")
_COMMENT = re.compile(r'comment "([^"]*)"$')

#: Chains of connections that went past a dead proxy.
AROUND = frozenset({"around_proxy", "bridged_around", "around_inbound"})


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody outside the mesh who calls a declared port in plain text.

    ``count`` is new connections, forgotten a day after the last one; ``idle`` seconds since that one.
    """

    address: IPAddress
    port: int
    count: int
    refused: bool
    idle: int = 0


@dataclass(frozen=True, slots=True)
class RuleCount:
    """How many packets (of redirect rules: connections) met a rule."""

    chain: str
    reason: str
    packets: int


def callers(listing: str | None) -> tuple[Caller, ...]:
    """Plain-text callers, busiest first."""
    if listing is None:
        return ()
    found = []
    for name, elements in readback.dynamic_elements(listing, CALLER_SETS).items():
        for key, packets, _size, left in elements:
            address, _, port = key.partition(" . ")
            ip = parse_ip(address)
            if ip is not None:
                idle = max(0, CALLERS_TIMEOUT - left)
                found.append(Caller(ip, int(port), packets, name.startswith("refused"), idle))
    return tuple(sorted(found, key=lambda caller: (-caller.count, str(caller.address), caller.port)))


def counts(listing: str | None) -> tuple[RuleCount, ...]:
    """Every chain's reasons with what met them, in the table's order; rules that differ in addresses only are one."""
    if listing is None:
        return ()
    found: dict[tuple[str, str], int] = {}
    for kind, body in readback.objects(listing):
        if kind != "rule":
            continue
        for expression in body.get("expr", []):
            if counter := expression.get("counter"):
                key = (body["chain"], body.get("comment", ""))
                found[key] = found.get(key, 0) + counter["packets"]
    return tuple(RuleCount(chain, reason, packets) for (chain, reason), packets in found.items())


def differences(table: str, listing: str | None) -> tuple[str, ...]:
    """What the kernel's rules (``listing``) have too few or too many of against ``table``, our own text; by chain and
    reason, for people. Empty where only addresses, verdicts or the order differ."""
    if listing is None:
        return ("the table is not there",) if table else ()
    wanted, there = Counter(_reasons(table)), Counter(_listed(listing))
    missing = (f"missing in chain {chain}: {reason}" for chain, reason in (wanted - there).elements())
    foreign = (f"not ours in chain {chain}: {reason or 'a rule without a comment'}" for chain, reason in there - wanted)
    return (*missing, *foreign)


def _reasons(table: str) -> Iterator[tuple[str, str]]:
    chain = ""
    for line in table.splitlines():
        if found := _CHAIN.match(line):
            chain = found[1]
        elif line.strip() == "}":
            chain = ""
        elif chain and (found := _COMMENT.search(line)):
            yield chain, found[1]


def _listed(listing: str) -> Iterator[tuple[str, str]]:
    for kind, body in readback.objects(listing):
        if kind == "rule":
            yield body["chain"], body.get("comment", "")


def around_proxy(listing: str | None) -> int:
    """Connections that went past a dead proxy since the last replacement of the rules."""
    return sum(count.packets for count in counts(listing) if count.chain in AROUND)
