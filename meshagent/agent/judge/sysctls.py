"""Kernel settings as capture sees them: which matter here, and what a person would want to know. Pure.

We change none. Measured on kernel 6.18, all interfaces alike, rp_filter 0, 1 and 2: with src_valid_mark 1 the kernel
looks for the way back to a packet's source by the packet's mark, and drops what comes in with a mark of ours (even with
rp_filter 0) when that way leads here. Capture marks nothing that comes in, by TPROXY, REDIRECT or HBONE, but answers of
a container whose port is published; for these a rule of ours answers that question (agent/capture/routing.py).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

#: From here on the table is worth a warning; the kernel drops new connections when it is full (dmesg: table full).
NEARLY_FULL = 0.85
#: The warning ends below this, so that it doesn't come and go with every connection.
ROOM_AGAIN = 0.75
#: Entries of a connection through the proxy: the program's, and the proxy's own in its zone.
_ENTRIES = 2

_COUNT, _MAX = "net.netfilter.nf_conntrack_count", "net.netfilter.nf_conntrack_max"


@dataclass(frozen=True, slots=True)
class Judged:
    """One setting. ``verdict`` is ``ok`` (nothing to do) or ``mind`` (read the text)."""

    name: str
    value: int
    verdict: str
    text: str


def judge_sysctls(values: Mapping[str, int], open_connections: int) -> tuple[Judged, ...]:
    """``values`` as ``machine.sysctls.read`` gives them; ``open_connections``: established TCP connections now."""
    simple = (_simple(name, values[name]) for name in sorted(values) if name not in (_COUNT, _MAX))
    return (*(judged for judged in simple if judged), *_conntrack(values, open_connections))


def is_nearly_full(count: int, most: int, *, was: bool = False) -> bool:
    """Whether conntrack's table is worth a warning; ``was``: it is being given."""
    return most > 0 and count >= most * (ROOM_AGAIN if was else NEARLY_FULL)


def _simple(name: str, value: int) -> Judged | None:
    if name.endswith(".rp_filter"):
        words = {0: "off", 1: "strict", 2: "loose"}
        return Judged(name, value, "ok", f"reverse-path filter {words.get(value, 'unknown')}: capture works with any")
    if name.endswith(".src_valid_mark"):
        counts = "count (wg-quick sets it)" if value else "don't count"
        return Judged(name, value, "ok", f"marks {counts} in the reverse-path filter: capture works with both")
    if name.endswith(".route_localnet"):
        if not value:
            return Judged(name, value, "ok", "capture needs no route to 127.0.0.0/8 from outside")
        return Judged(name, value, "mind", "others can reach 127.0.0.0/8 of this host; capture doesn't need it")
    if "forward" in name:
        if not value:
            return Judged(name, value, "ok", "this host forwards nothing")
        return Judged(name, value, "ok", "this host forwards (containers, a router): forwarded traffic is not captured")
    return None


def _conntrack(values: Mapping[str, int], open_connections: int) -> Iterable[Judged]:
    if _COUNT not in values or _MAX not in values:
        return
    count, most = values[_COUNT], values[_MAX]
    expected = max(count, open_connections) * _ENTRIES
    text = f"{count} of {most} entries are used"
    if is_nearly_full(count, most):
        yield Judged(_MAX, most, "mind", f"{text}: when it is full the kernel drops new connections; raise it first")
    elif most and expected > most * NEARLY_FULL:
        why = f"{text}, {open_connections} connections are open, and a captured one takes {_ENTRIES}"
        yield Judged(_MAX, most, "mind", f"{why}: raise it before capture goes on")
    else:
        yield Judged(_MAX, most, "ok", f"{text}; a captured connection takes {_ENTRIES}")
