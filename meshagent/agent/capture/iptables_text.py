"""The words of iptables-restore, in the very form in which iptables-save prints them back. Pure.

That form matters: rules that are kept over a replacement keep their counters because their text is equal. So every
reason holds a blank (save quotes only then) and no apostrophe (save escapes it).
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from ipaddress import ip_network

from meshagent.model.address import IPNetwork, MeshAddress
from meshagent.model.marks import CHAIN_PREFIX

#: xt_tcpudp: the first packet of a connection.
SYN = "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN"
NOT_SYN = "-p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN"

#: A chain is walked rule by rule; from this many addresses on they are split by network, one chain for each.
_SPLIT_FROM = 32

#: Chain name without prefix -> its rules, in order.
Chains = dict[str, list[str]]


def chain(name: str) -> str:
    """The kernel's name of one of our chains; at most 28 characters (XT_EXTENSION_MAXNAMELEN with its zero)."""
    found = CHAIN_PREFIX + name.upper()
    assert len(found) <= 28, found
    return found


def rule(match: str, target: str, reason: str) -> str:
    """The part behind ``-A CHAIN``; ``target`` empty counts only. A comment holds 255 characters."""
    assert " " in reason and "'" not in reason and len(reason) < 256, reason
    return " ".join(part for part in (match, f'-m comment --comment "{reason}"', target) if part)


def jump(name: str) -> str:
    return f"-j {chain(name)}"


def table(name: str, jumps: Sequence[tuple[str, str]], chains: Mapping[str, Sequence[str]]) -> str:
    """One table: ``jumps`` from the kernel's chains (OUTPUT, INPUT, …) to ours, then our chains."""
    lines = [f"*{name}", *(f":{chain(own)} - [0:0]" for own in chains)]
    for builtin, target in jumps:
        comment = '-m comment --comment "meshagent: only mesh traffic gets a verdict there"'
        lines.append(f"-A {builtin} {comment} {jump(target)}")
    lines += [f"-A {chain(own)} {line}" for own, rules in chains.items() for line in rules]
    return "\n".join([*lines, "COMMIT", ""])


def host(address: object, version: int) -> str:
    return f"-d {address}/{32 if version == 4 else 128}"


#: Lists of xt_recent, /proc/net/xt_recent/NAME: ``meshagent_callers4_8080``.
CALLER_LISTS = "meshagent_"


def remember(kind: str, port: int, match: str, version: int, reason: str) -> str:
    """A rule that puts who sent the packet on a list."""
    return rule(f"{match} -m recent --set {recent(kind, port, version)}", "", reason)


def recent(kind: str, port: int, version: int) -> str:
    """The list of this kind and port, by who sent the packet."""
    mask = "255.255.255.255" if version == 4 else ":".join(["ffff"] * 8)
    return f"--name {CALLER_LISTS}{kind}{version}_{port} --mask {mask} --rsource"


def lookup(name: str, pairs: Sequence[MeshAddress], target: str, reason: str) -> Chains:
    """Chain ``name`` and what it needs: a jump to ``target`` for each address and port; sorted as ``pairs`` is."""
    if len(pairs) <= _SPLIT_FROM:
        return {name: [_pair(pair, target, reason) for pair in pairs]}
    groups: dict[IPNetwork, list[MeshAddress]] = {}
    for pair in pairs:
        groups.setdefault(_network(pair), []).append(pair)
    chains: Chains = {name: []}
    for network, members in groups.items():
        short = f"{name[0]}_{hashlib.sha256(str(network).encode()).hexdigest()[:16]}"
        chains[name].append(rule(f"-d {network}", jump(short), "addresses of the mesh in this network"))
        chains[short] = [_pair(pair, target, reason) for pair in members]
    return chains


def _network(pair: MeshAddress) -> IPNetwork:
    """The 256 addresses around it."""
    return ip_network((pair.ip, pair.ip.max_prefixlen - 8), strict=False)


@lru_cache(maxsize=16_384)
def _pair(pair: MeshAddress, target: str, reason: str) -> str:
    """The whole text is written for each change, and nearly all of it was in the one before."""
    match = f"{host(pair.ip, pair.ip.version)} -p tcp -m tcp --dport {pair.port}"
    return rule(match, jump(target), reason)
