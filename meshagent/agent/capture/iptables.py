"""An ``Intent`` as text for iptables-legacy-restore and ip6tables-legacy-restore. Pure; goldens: tests/golden/iptables.

For kernels and distributions without nftables. The same meaning as nft.py, one text with a part for each family; the
guard hands each to its program. All chains are ours (MESHAGENT_*), everybody else's get one jump each.

What is lost against nft, said by ``lost`` and shown by plan:
- no owner: rules stay when the guard dies, and others can flush them; the guard looks four times a second.
- atomic for each table and family, not for the whole: names, mesh addresses and refusals change within milliseconds
  of each other, in an order in which nothing that was refused is let through.
- callers in plain text: at most 100 addresses for each port, counted up to 32.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from meshagent.agent.capture import iptables_arriving
from meshagent.agent.capture import iptables_chains as chains
from meshagent.agent.capture.iptables_text import SYN, chain, jump, rule
from meshagent.agent.capture.nft import PROXY_GATE, RESOLVER_GATE
from meshagent.agent.capture.values import Intent, Ipv6, Mode
from meshagent.config.settings import Backend
from meshagent.guard.decide import HUNG_GATE
from meshagent.guard.state import Gate, Ruleset
from meshagent.model.ports import OUTBOUND

HEADS = {4: "# IPv4: iptables-legacy-restore --noflush", 6: "# IPv6: ip6tables-legacy-restore --noflush"}

NO_ZONES = (
    "iptables: this kernel has no conntrack zones; a stale entry of a captured connection may catch one of the proxy, "
    "and an open flow of DNS stays where it was when capture goes on or off"
)

_ANCHOR_REASON = "never met: keeps conntrack hooked, so that captured connections live on when the rules go"


def render(intent: Intent) -> Ruleset:
    """The whole desired state for the guard. With mode ``off`` there is no text at all."""
    if intent.mode is Mode.OFF:
        return Ruleset(digest=_digest("", fail_open=False), backend=Backend.IPTABLES.value)
    text = "".join(f"{HEADS[version]}\n{_family(intent, version)}" for version in (4, 6))
    return Ruleset(
        rules=text,
        anchor=_anchor(),
        digest=_digest(text, intent.fail_open),
        gates=_gates(intent),
        backend=Backend.IPTABLES.value,
    )


def _digest(text: str, fail_open: bool) -> str:
    """What a gate may do is not in the text, but it is part of the rules."""
    return hashlib.sha256(json.dumps(["iptables", text, fail_open]).encode()).hexdigest()


def lost(intent: Intent) -> tuple[str, ...]:
    """What this backend can't do that nft can, as sentences for people."""
    found = ["iptables: the rules stay if the guard is killed; other programs can flush them, the guard restores them"]
    if intent.counted_ports or intent.strict_ports:
        found.append("iptables: at most 100 plain-text callers are known for each port, each counted up to 32")
    if intent.arriving_families:
        found.append("iptables: what comes in passes by REDIRECT; a host firewall sees port 15006 and must let it in")
    return tuple(found)


def _family(intent: Intent, version: int) -> str:
    """Refusals are there before anything is redirected."""
    nat = chains.nat(intent, version) if intent.mode is Mode.ACTIVE else ""
    return chains.raw(intent, version) + chains.mangle(intent, version) + chains.filtering(intent, version) + nat


def _anchor() -> str:
    """A chain nobody jumps to is enough: its rule holds conntrack and NAT as long as it exists."""
    text = ""
    for version, nowhere in ((4, "192.0.2.1/32"), (6, "2001:db8::1/128")):
        line = rule(f"-d {nowhere} -p tcp -m tcp --dport 1", "-j REDIRECT --to-ports 1", _ANCHOR_REASON)
        text += f"{HEADS[version]}\n*nat\n:{chain('anchor')} - [0:0]\n-A {chain('anchor')} {line}\nCOMMIT\n"
    return text


# --- gates: a chain of one rule each ---------------------------------------------------------------------------------


def _gates(intent: Intent) -> dict[str, Gate]:
    """Policy closed has no gate around the proxy, so nothing can open it; names are never worth refusing."""
    if intent.mode is not Mode.ACTIVE:
        return {}
    gates = {HUNG_GATE: Gate(_hung(intent, refused=True), _hung(intent, refused=False))}
    if intent.fail_open:
        gates[PROXY_GATE] = _gate(lambda version: _proxy_chains(intent, version))
    if intent.nameservers:
        gates[RESOLVER_GATE] = _gate(lambda version: _resolver_chains(intent, version))
    return gates


def _hung(intent: Intent, *, refused: bool) -> str:
    """Whatever the policy, what is redirected to a proxy that hangs is refused instead of kept waiting."""
    text = ""
    match = SYN.replace("--tcp-flags", f"--dport {OUTBOUND} --tcp-flags")
    outbound = [rule(f"{match} -m conntrack --ctstate DNAT", jump("nowhere"), _HUNG)] if refused else []
    for version in (4, 6):
        text += f"{HEADS[version]}\n{_filled('filter', {'hung_gate': outbound})}"
        if from_outside := iptables_arriving.hung(intent, version):
            text += _filled("nat", {name: rules if refused else [] for name, rules in from_outside.items()})
    return text


_HUNG = "the proxy is dead or hangs: refused at once, also if a stranger has its port"


@dataclass(frozen=True, slots=True)
class _Flip:
    """A chain of one rule: where it leads while its gate is closed, and while open; empty for nowhere."""

    table: str
    chain: str
    closed: str
    opened: str


def _proxy_chains(intent: Intent, version: int) -> list[_Flip]:
    found = []
    if version == 4 or intent.ipv6 is Ipv6.CAPTURE:
        found.append(_Flip("nat", "claimed_gate", "to_proxy", "around_proxy"))
    if version in intent.bridged_families:
        found.append(_Flip("nat", *iptables_arriving.BRIDGED_GATE))
    if version in intent.arriving_families:
        found.append(_Flip("nat", *iptables_arriving.INBOUND_GATE))
    return found


def _resolver_chains(intent: Intent, version: int) -> list[_Flip]:
    if not chains.nameservers(intent, version):
        return []
    zone = _Flip("raw", "names_zone_gate", "captured_zone", "")
    return [zone, _Flip("nat", "names_gate", "to_resolver", "around_resolver")]


def _gate(flips: Callable[[int], list[_Flip]]) -> Gate:
    """Text that makes the chains of both families lead elsewhere; each table at once."""
    texts = []
    for opened in (True, False):
        text = ""
        for version in (4, 6):
            tables: dict[str, dict[str, list[str]]] = {}
            for flip in flips(version):
                to = flip.opened if opened else flip.closed
                tables.setdefault(flip.table, {})[flip.chain] = [rule("", jump(to), _FLIPS[to])] if to else []
            if tables:
                text += f"{HEADS[version]}\n" + "".join(_filled(table, held) for table, held in tables.items())
        texts.append(text)
    return Gate(*texts)


def _filled(table: str, held: Mapping[str, Sequence[str]]) -> str:
    """Text that makes chains hold these rules."""
    heads = [f":{chain(name)} - [0:0]" for name in held]
    rules = [f"-A {chain(name)} {line}" for name, lines in held.items() for line in lines]
    return "\n".join([f"*{table}", *heads, *rules, "COMMIT", ""])


#: The closed ones as the chains have them from the start.
_FLIPS = {
    "to_proxy": "flips when the proxy is dead",
    "around_proxy": "the proxy is dead",
    "bridged_to_proxy": "flips when the proxy is dead",
    "bridged_around": "the proxy is dead",
    "to_inbound": "flips when the proxy is dead",
    "around_inbound": "the proxy is dead",
    "to_resolver": "names are captured",
    "around_resolver": "the resolver is dead",
    "captured_zone": "names are captured",
}
