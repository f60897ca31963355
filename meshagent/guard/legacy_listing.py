"""What legacy tables hold, in the shape in which libnftables lists a table, so that nobody else has to know. Pure.

Chains and rules come from iptables-save -c, plain-text callers from /proc/net/xt_recent. There the kernel keeps for
each address when it came, at most 32 times, in jiffies.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from meshagent.guard.legacy_text import Tables
from meshagent.model.marks import CHAIN_PREFIX

#: How long a caller is known, as on nft (agent/capture/nft.py).
_KEPT_SECONDS = 86_400
_LIST = re.compile(r"meshagent_(callers|refused)([46])_(\d+)")
_ENTRY = re.compile(r"src=(\S+) .*last_seen: (\d+) oldest_pkt: \d+ (.*)")
_COMMENT = re.compile(r'--comment "([^"]*)"')


def listing(families: Mapping[int, Tables], recent: Mapping[str, str], jiffies: int, hertz: int) -> str | None:
    """JSON like libnftables-json(5); None when nothing but the anchor is there.

    ``recent``: name -> content of each list of xt_recent. ``jiffies`` now, ``hertz`` of them in a second.
    """
    objects = [found for family, tables in families.items() for found in _objects(family, tables)]
    if all(body.get("name") == "anchor" or body.get("chain") == "anchor" for item in objects for body in item.values()):
        return None
    return json.dumps({"nftables": [*objects, *_sets(recent, jiffies, hertz)]})


def _objects(family: int, tables: Tables) -> Iterator[dict[str, Any]]:
    where = {"family": "ip" if family == 4 else "ip6"}
    for name, table in tables.items():
        place = where | {"table": name}
        for jump in table.jumps:
            yield {"rule": place | _rule(jump.chain, jump.rule.text, jump.rule.packets, jump.rule.size)}
        for chain, rules in table.chains.items():
            yield {"chain": place | {"name": _short(chain)}}
            for rule in rules:
                yield {"rule": place | _rule(_short(chain), rule.text, rule.packets, rule.size)}


def _rule(chain: str, text: str, packets: int, size: int) -> dict[str, Any]:
    comment = _COMMENT.search(text)
    counter = {"counter": {"packets": packets, "bytes": size}}
    return {"chain": chain, "comment": comment[1] if comment else "", "text": text, "expr": [counter]}


def _short(chain: str) -> str:
    return chain.removeprefix(CHAIN_PREFIX).lower()


def _sets(recent: Mapping[str, str], jiffies: int, hertz: int) -> Iterator[dict[str, Any]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for name, text in recent.items():
        if known := _LIST.fullmatch(name):
            elements = found.setdefault(known[1] + known[2], [])
            elements += _elements(text, int(known[3]), jiffies, hertz)
    for name, elements in sorted(found.items()):
        yield {"set": {"name": name, "timeout": _KEPT_SECONDS, "elem": elements}}


def _elements(text: str, port: int, jiffies: int, hertz: int) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        if entry := _ENTRY.match(line):
            idle = max(0, jiffies - int(entry[2])) // hertz if jiffies and hertz else 0
            if idle < _KEPT_SECONDS:
                counter = {"packets": len(entry[3].split(",")), "bytes": 0}
                value = {"concat": [entry[1], port]}
                yield {"elem": {"val": value, "counter": counter, "expires": _KEPT_SECONDS - idle}}


def hertz(jiffies: int, uptime: float) -> int:
    """Jiffies in a second: they begin 300 s before 2**32 (linux/jiffies.h), so only one of the usual rates fits."""
    return min((100, 250, 300, 1000), key=lambda rate: abs(2**32 + rate * (uptime - 300) - jiffies))
