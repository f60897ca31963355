"""An nft ruleset (libnftables-json(5)) read as chains of rules for one packet. Pure.

Elements of sets are not in a terse listing, so a match against a named set may hold or not.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from meshagent.agent.judge.packets import Chains, Fate, Holds, Rule

_VERDICTS = {"accept": "accept", "drop": "refuse", "reject": "refuse", "return": "return", "queue": "accept"}


@dataclass(frozen=True, slots=True)
class Table:
    """``bases``: base chain of type filter on the way in -> what happens to a packet that comes out at its end."""

    family: str
    name: str
    chains: Chains
    bases: Mapping[str, Fate]


def parse(text: str, port: int) -> tuple[Table, ...]:
    """Tables with a filter on the way in. A listing that can't be read is no table."""
    try:
        return tuple(_tables(json.loads(text)["nftables"], port))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ()


def _tables(items: list[Any], port: int) -> Iterator[Table]:
    rules: dict[tuple[str, str], dict[str, list[Rule]]] = {}
    bases: dict[tuple[str, str], dict[str, Fate]] = {}
    for item in items:
        kind, value = next(iter(item.items()))
        if kind == "chain":
            where = value["family"], value["table"]
            rules.setdefault(where, {}).setdefault(value["name"], [])
            if value.get("type") == "filter" and value.get("hook") in ("input", "prerouting"):
                policy = Fate.REFUSED if value.get("policy") == "drop" else Fate.ACCEPTED
                bases.setdefault(where, {})[value["name"]] = policy
        elif kind == "rule":
            chains = rules.setdefault((value["family"], value["table"]), {})
            chains.setdefault(value["chain"], []).extend(_rules(value.get("expr", []), value["family"], port))
    for where, found in bases.items():
        yield Table(*where, rules[where], found)


def _rules(statements: list[Any], family: str, port: int) -> Iterator[Rule]:
    """One rule of nft as one or several of ours: a verdict map is a rule for each element."""
    holds = Holds.YES
    for statement in statements:
        kind, value = next(iter(statement.items())) if isinstance(statement, dict) else (str(statement), None)
        if kind == "match":
            holds = holds & _match(value, family, port)
        elif kind in ("limit", "xt", "quota"):
            holds = holds & Holds.MAYBE
        elif kind == "vmap":
            yield from _map(value, holds, family, port)
        else:
            action = _action(kind, value)
            if action:
                yield Rule(holds, action)
                return


def _action(kind: str, value: Any) -> str:
    if kind in ("jump", "goto"):
        return f"{kind} {value['target']}"
    return _VERDICTS.get(kind, "")


def _map(value: Any, holds: Holds, family: str, port: int) -> Iterator[Rule]:
    data = value.get("data")
    if not isinstance(data, dict) or "set" not in data:  # a named map: either may be in it
        yield Rule(holds & Holds.MAYBE, "accept")
        yield Rule(holds & Holds.MAYBE, "refuse")
        return
    for key, verdict in data["set"]:
        kind, target = next(iter(verdict.items()))
        matched = _match({"op": "==", "left": value["key"], "right": key}, family, port)
        yield Rule(holds & matched, _action(kind, target))


def _match(value: Any, family: str, port: int) -> Holds:
    op, left, right = value.get("op", "=="), value.get("left"), value.get("right")
    known = _known(left, family, port)
    if known is None:
        return Holds.MAYBE
    if isinstance(known, Holds):
        return known
    equal = _among(known, right)
    if op in ("==", "in"):
        return equal
    return ~equal if op == "!=" else Holds.MAYBE


def _known(left: Any, family: str, port: int) -> tuple[object, ...] | Holds | None:
    """The values this side of a match has for our packet; None when it isn't known, ``NO`` for another protocol."""
    kind, value = next(iter(left.items())) if isinstance(left, dict) and left else ("", None)
    if kind == "payload" and isinstance(value, dict):
        return _payload(str(value.get("protocol")), str(value.get("field")), port)
    key = value.get("key") if isinstance(value, dict) else None
    if kind == "meta" and key == "l4proto":
        return ("tcp", 6)
    if kind == "meta" and key in ("nfproto", "protocol"):
        return {"ip": ("ipv4", "ip"), "ip6": ("ipv6", "ip6")}.get(family)
    if kind == "meta" and key in ("iif", "iifname"):
        return ("an interface that is not lo",)
    if kind == "ct" and key == "state":
        return ("new",)
    if kind == "ct" and key == "status":
        return ("none of them",)
    if kind == "fib" and isinstance(value, dict):  # our packet is for this host, and its sender has a way back
        return ("local",) if value.get("result") == "type" else (True,)
    return None


def _payload(protocol: str, field: str, port: int) -> tuple[object, ...] | Holds | None:
    if (protocol, field) in (("tcp", "dport"), ("th", "dport")):
        return (port,)
    if (protocol, field) in (("ip", "protocol"), ("ip6", "nexthdr")):
        return ("tcp", 6)
    return Holds.NO if protocol not in ("tcp", "th", "ip", "ip6", "ether", "vlan") else None


def _among(known: tuple[object, ...], right: Any) -> Holds:
    """Whether one of the values is what the other side of the match names."""
    if known == ("an interface that is not lo",):
        return Holds.NO if right == "lo" else Holds.MAYBE
    if isinstance(right, dict) and "range" in right:
        low, high = right["range"]
        numbers = [number for number in known if isinstance(number, int)]
        return Holds.YES if any(low <= number <= high for number in numbers) else Holds.NO
    if isinstance(right, dict):
        right = right.get("set", right.get("|"))
    if isinstance(right, list):
        each = [_among(known, item) for item in right]
        return max(each, key=lambda holds: holds.value, default=Holds.NO)
    if isinstance(right, str) and right.startswith("@"):
        return Holds.MAYBE
    return Holds.YES if right in known else Holds.NO
