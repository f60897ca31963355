"""The words of nft: blocks, rules, sets, and lists it accepts. Pure."""

from collections.abc import Iterable, Sequence

from meshagent.config.settings import PortRange
from meshagent.model.address import IPNetwork
from meshagent.model.marks import TABLE


def rule(match: str, verdict: str, reason: str) -> str:
    """A rule with a counter and its reason; nft keeps at most 127 characters of a comment."""
    assert len(reason) < 128
    return f'{match} counter {verdict} comment "{reason}"'.lstrip()


def chain(name: str, hook: str, rules: Sequence[str]) -> str:
    """``hook`` as in ``filter hook output priority raw``; empty for a chain that others jump to."""
    head = [f"type {hook}; policy accept;"] if hook else []
    return block(f"chain {name}", [*head, *rules])


def block(head: str, lines: Sequence[str]) -> str:
    return f"\t{head} {{\n" + "".join(f"\t\t{line}\n" for line in lines) + "\t}\n"


def set_of(name: str, kind: str, elements: Sequence[str]) -> str:
    return block(f"set {name}", [f"type {kind}", *element_lines(elements)])


def map_of(name: str, elements: Sequence[str]) -> str:
    return block(f"map {name}", ["type inet_proto : verdict", *element_lines(elements)])


def dynamic_set(name: str, kind: str, size: int, timeout: str) -> str:
    """A set the kernel fills itself: at most ``size`` elements, each forgotten ``timeout`` (``1d``) after it was last
    met."""
    return block(f"set {name}", [f"type {kind}", f"size {size}", "flags dynamic,timeout", f"timeout {timeout}"])


def element_lines(elements: Sequence[str]) -> list[str]:
    """An empty list of elements is a syntax error to nft."""
    return [f"elements = {{ {(',' + chr(10) + chr(9) * 4).join(elements)} }}"] if elements else []


def flip(name: str, before: Sequence[str], after: Sequence[str]) -> str:
    """Lines that change the verdicts of a map. By element, never ``flush map``: nft 1.1.3 crashes on a flush in the
    batch that also makes the map, and a bypass goes into such a batch when rules are replaced while it is open."""
    return change("delete", name, before) + change("add", name, after)


def change(verb: str, name: str, elements: Sequence[str]) -> str:
    """One line that adds or deletes elements of a set or map."""
    return f"{verb} element inet {TABLE} {name} {{ {', '.join(elements)} }}\n"


def merged(ranges: Iterable[PortRange]) -> list[PortRange]:
    """Disjoint ranges in order; nft refuses overlapping ones."""
    found: list[PortRange] = []
    for item in sorted(ranges):
        if found and item.first <= found[-1].last + 1:
            found[-1] = PortRange(found[-1].first, max(found[-1].last, item.last))
        else:
            found.append(item)
    return found


def outermost(networks: Iterable[IPNetwork], version: int) -> tuple[str, ...]:
    """The networks of one IP version without those inside others; nft refuses overlapping intervals."""
    kept: list[IPNetwork] = []
    for net in sorted((net for net in networks if net.version == version), key=lambda net: net.prefixlen):
        if not any(net.subnet_of(other) for other in kept):  # type: ignore[arg-type]
            kept.append(net)
    return tuple(str(net) for net in sorted(kept, key=lambda net: int(net.network_address)))
