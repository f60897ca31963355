"""An ``Intent`` as nftables text. Pure; goldens in tests/golden/nft show what comes out.

How to read the table: the chains with a ``type … hook`` line are where the kernel comes in, in the order of their
priorities: conntrack zones (raw), marks and own ports (mangle), names (-101), mesh addresses (-100), what is left for
virtual addresses (filter), plain text that arrives (input). All others are jumped to.

Why it looks like this, with what was measured on kernel 6.18:
- TCP verdicts match only SYN. On a host whose conntrack was idle, a packet of an open connection looks new; a plain
  redirect resets it (an ssh session that prints).
- Sets hold the addresses, maps hold the verdicts a bypass flips. So thousands of addresses, a change of one, and
  opening for a dead proxy are element changes; rules and counters stay.
- The proxy's own packets have a conntrack zone of their own, by mark: without it a stale entry of a captured
  connection redirects the proxy's SYN to the proxy (58 % of its connects failed under a burst of failures).
- Refusals come first-hand from the kernel: an undeclared port, UDP or ICMP to a virtual address fails in under 1 ms.
"""

import hashlib
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import lru_cache

from meshagent.agent.capture import chains, chains_bridges, chains_inbound, chains_published, text
from meshagent.agent.capture.values import Intent, Ipv6, Mode
from meshagent.guard.decide import HUNG_GATE
from meshagent.guard.state import Gate, Ruleset
from meshagent.model.address import MeshAddress
from meshagent.model.marks import ANCHOR_TABLE, HOLD_TABLE, TABLE

#: Dynamic sets of plain-text callers: `source . port` with a counter of SYNs. Bounded, so that a flood of forged
#: sources costs 1 MB and not the machine; a day, so that "nobody for a day" can be seen before going strict.
CALLER_SETS = ("callers4", "callers6", "refused4", "refused6")
_CALLERS_SIZE = 8192
CALLERS_TIMEOUT = 86_400  # seconds

#: Own addresses at which a declared port was dialled a moment ago (chains_published.py). They are asked for some
#: microseconds later; the size is for hosts that own whole networks, where callers could fill a small set.
_DIALLED_SIZE, _DIALLED_TIMEOUT = 65_535, "5s"

#: Gates of the guard: what a bypass flips.
PROXY_GATE = "proxy"
RESOLVER_GATE = "resolver"

_ANCHOR_REASON = "never matches: keeps NAT hooked, so that captured connections live on when the rules go"
ANCHOR = f"""table inet {ANCHOR_TABLE} {{
\tchain keep_nat {{
\t\ttype nat hook output priority -100; policy accept;
\t\tip daddr 192.0.2.1 tcp dport 1 redirect to :1 comment "{_ANCHOR_REASON}"
\t}}
}}
"""


def _hold() -> str:
    """What open connections need of the rules, for while somebody flushes those: NAT stays hooked, and answers to the
    proxy find their way back. Met twice it does the same as once."""
    keep_nat = ANCHOR.partition("{\n")[2].removesuffix("}\n")
    return f"table inet {HOLD_TABLE} {{\n" + "\n".join([keep_nat, *chains.client_address()]) + "}\n"


def render(intent: Intent) -> Ruleset:
    """The whole desired state for the guard. With mode ``off`` the table is empty: there are no rules at all."""
    if intent.mode is Mode.OFF:
        return Ruleset(digest=digest("", False, {}))
    rules, sets = _rules(intent), packed_sets(intent)
    return Ruleset(
        rules=rules,
        anchor=ANCHOR,
        owner=intent.fail_open,
        digest=digest(rules, intent.fail_open, sets),
        gates=_gates(intent),
        carry=_caller_sets(intent),
        sets=sets,
        hold=_hold(),
    )


def digest(rules: str, owner: bool, sets: Mapping[str, bytes]) -> str:
    """Equal rulesets have equal digests, whichever steps led to them."""
    # of digests, as mostly one set is another than before; SHA-2 takes three times as long where OpenSSL's isn't loaded
    parts = [_digest(rules.encode()), *(f"{name} {_digest(keys)}" for name, keys in sorted(sets.items()))]
    return _digest(f"{owner} {parts}".encode())


@lru_cache(maxsize=8)
def _digest(part: bytes) -> str:
    return hashlib.blake2b(part, digest_size=32).hexdigest()


def _rules(intent: Intent) -> str:
    """The table without addresses of the mesh: those go another way, see guard/elements.py."""
    blocks = [*_sets(intent), *chains.zones(intent), *chains.client_address(), *chains.own_ports(intent)]
    if intent.mode is Mode.ACTIVE:
        blocks += [*chains.names(intent), *chains.outbound(intent), *chains_bridges.bridged(intent)]
    blocks += chains.virtual(intent)
    if intent.counted_ports or intent.strict_ports:
        blocks += [*chains_inbound.inbound(intent), *chains_published.published(intent)]
    blocks += chains_inbound.arriving(intent)
    return f"table inet {TABLE} {{\n" + "\n".join(blocks) + "}\n"


# --- sets and maps ---------------------------------------------------------------------------------------------------


def addresses(intent: Intent) -> dict[str, tuple[MeshAddress, ...]]:
    """Set name -> its addresses, sorted; the sets that change while the rules stay."""
    if intent.mode is not Mode.ACTIVE:
        return {}
    (virtual4, virtual6), (claimed4, claimed6) = _by_version(intent.virtual), _by_version(intent.claimed)
    four, six = {"virtual4": virtual4, "claimed4": claimed4}, {"virtual6": virtual6, "claimed6": claimed6}
    if not intent.fail_open:
        four["unserved4"], six["unserved6"] = _by_version(intent.unserved)
    return four if intent.ipv6 is Ipv6.LEAVE else four | six


def _by_version(pairs: tuple[MeshAddress, ...]) -> tuple[tuple[MeshAddress, ...], tuple[MeshAddress, ...]]:
    """IPv4 comes first in an intent, so the border is found in a few steps."""
    border = bisect_left(pairs, 6, key=lambda pair: pair.ip.version)
    return pairs[:border], pairs[border:]


def packed_sets(intent: Intent) -> dict[str, bytes]:
    """``addresses`` as the guard keeps them."""
    return {name: b"".join(map(packed, pairs)) for name, pairs in addresses(intent).items()}


def packed(address: MeshAddress) -> bytes:
    """The key of one address (guard/elements.py)."""
    return address.ip.packed + address.port.to_bytes(2, "big")


def address_sets(intent: Intent) -> dict[str, tuple[str, ...]]:
    """``addresses`` as nft writes them."""
    return {name: tuple(f"{pair.ip} . {pair.port}" for pair in pairs) for name, pairs in addresses(intent).items()}


def _sets(intent: Intent) -> list[str]:
    blocks = []
    for name in addresses(intent):
        blocks.append(text.set_of(name, f"ipv{name[-1]}_addr . inet_service", ()))
    if intent.nameservers:
        for version in (4, 6):
            found = tuple(str(address) for address in intent.nameservers if address.version == version)
            if found:
                blocks.append(text.set_of(f"nameservers{version}", f"ipv{version}_addr", found))
        blocks.append(text.map_of("names_gate", ("tcp : goto to_resolver", "udp : goto to_resolver")))
        blocks.append(text.map_of("names_zone_gate", ("udp : goto captured_zone",)))
    if intent.mode is Mode.ACTIVE:
        blocks += [text.map_of(name, (f"tcp : goto {captured}",)) for name, captured, _ in _proxy_maps(intent)]
        blocks.append(text.map_of("hung_gate", ()))
    for name in _caller_sets(intent):
        blocks.append(
            text.dynamic_set(name, f"ipv{name[-1]}_addr . inet_service", _CALLERS_SIZE, f"{CALLERS_TIMEOUT // 86_400}d")
        )
    if intent.counted_ports or intent.strict_ports:
        blocks += [text.dynamic_set(f"dialled{v}", f"ipv{v}_addr", _DIALLED_SIZE, _DIALLED_TIMEOUT) for v in (4, 6)]
    if intent.counted_ports:
        blocks.append(text.set_of("counted_ports", "inet_service", tuple(map(str, intent.counted_ports))))
    if intent.strict_ports:
        blocks.append(text.set_of("strict_ports", "inet_service", tuple(map(str, intent.strict_ports))))
    for version, ports in chains_inbound.redirected_ports(intent).items():
        blocks.append(text.set_of(f"redirected{version}", "inet_service", tuple(map(str, ports))))
    return blocks


def _caller_sets(intent: Intent) -> tuple[str, ...]:
    wanted = ("callers",) * bool(intent.counted_ports) + ("refused",) * bool(intent.strict_ports)
    return tuple(name for name in CALLER_SETS if name[:-1] in wanted)


# --- gates -----------------------------------------------------------------------------------------------------------


def _gates(intent: Intent) -> dict[str, Gate]:
    """Policy closed has no gate around the proxy, so nothing can open it; names are never worth refusing.

    Whatever the policy, what is redirected to a proxy that hangs is refused instead of kept waiting.
    """
    if intent.mode is not Mode.ACTIVE:
        return {}
    refused = ("tcp : goto nowhere",)
    gates = {HUNG_GATE: Gate(text.change("add", "hung_gate", refused), text.change("delete", "hung_gate", refused))}
    if intent.fail_open:
        gates[PROXY_GATE] = _proxy_gate(intent)
    if intent.nameservers:
        captured = tuple(f"{proto} : goto to_resolver" for proto in ("tcp", "udp"))
        around = tuple(f"{proto} : goto around_resolver" for proto in ("tcp", "udp"))
        names, zone = _gate("names_gate", captured, around), ("udp : goto captured_zone",)
        gates[RESOLVER_GATE] = Gate(
            text.change("delete", "names_zone_gate", zone) + names.bypass,
            names.recapture + text.change("add", "names_zone_gate", zone),
        )
    return gates


def _proxy_maps(intent: Intent) -> list[tuple[str, str, str]]:
    """Map, chain that leads to the proxy, chain that leads around it."""
    maps = [("claimed_gate", "to_proxy", "around_proxy")]
    if intent.bridged_families:
        maps.append(("bridged_gate", "bridged_to_proxy", "bridged_around"))
    if intent.arriving_families:
        maps.append(("inbound_gate", "to_inbound", "around_inbound"))
    return maps


def _proxy_gate(intent: Intent) -> Gate:
    flips = [_gate(name, (f"tcp : goto {to}",), (f"tcp : goto {past}",)) for name, to, past in _proxy_maps(intent)]
    return Gate("".join(flip.bypass for flip in flips), "".join(flip.recapture for flip in flips))


def _gate(name: str, captured: Sequence[str], around: Sequence[str]) -> Gate:
    return Gate(text.flip(name, captured, around), text.flip(name, around, captured))
