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
from collections.abc import Sequence

from meshagent.agent.capture import iptables_chains as chains
from meshagent.agent.capture.iptables_text import SYN, chain, jump, rule
from meshagent.agent.capture.nft import PROXY_GATE, RESOLVER_GATE
from meshagent.agent.capture.values import Intent, Ipv6, Mode
from meshagent.config.settings import Backend
from meshagent.guard.decide import HUNG_GATE
from meshagent.guard.state import Gate, Ruleset
from meshagent.model.ports import OUTBOUND

HEADS = {4: "# IPv4: iptables-legacy-restore --noflush", 6: "# IPv6: ip6tables-legacy-restore --noflush"}

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
    return tuple(found)


def _family(intent: Intent, version: int) -> str:
    """Refusals are there before anything is redirected."""
    nat = chains.nat(intent, version) if intent.mode is Mode.ACTIVE else ""
    return chains.raw(intent, version) + chains.mangle() + chains.filtering(intent, version) + nat


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
    match = SYN.replace("--tcp-flags", f"--dport {OUTBOUND} --tcp-flags")
    refused = (rule(f"{match} -m conntrack --ctstate DNAT", jump("nowhere"), _HUNG),)
    gates = {HUNG_GATE: Gate(*(_filled("filter", "hung_gate", rules) for rules in (refused, ())))}
    if intent.fail_open:
        redirected = [version for version in (4, 6) if version == 4 or intent.ipv6 is Ipv6.CAPTURE]
        gates[PROXY_GATE] = Gate(*(_verdict(redirected, nat=("claimed_gate", to)) for to in _AROUND["proxy"]))
    if asked := [version for version in (4, 6) if chains.nameservers(intent, version)]:
        around, captured = _AROUND["resolver"]
        gates[RESOLVER_GATE] = Gate(
            _verdict(asked, raw=("names_zone_gate", ""), nat=("names_gate", around)),
            _verdict(asked, raw=("names_zone_gate", "captured_zone"), nat=("names_gate", captured)),
        )
    return gates


_HUNG = "the proxy hangs: refused at once instead of kept waiting"


def _filled(table: str, name: str, rules: Sequence[str]) -> str:
    """Text that makes a chain hold these rules, in both families."""
    lines = [f"*{table}", f":{chain(name)} - [0:0]", *(f"-A {chain(name)} {line}" for line in rules), "COMMIT", ""]
    return "".join(f"{HEADS[version]}\n" + "\n".join(lines) for version in (4, 6))


#: Gate -> where its chain leads while open, and while closed.
_AROUND = {"proxy": ("around_proxy", "to_proxy"), "resolver": ("around_resolver", "to_resolver")}


def _verdict(versions: list[int], **verdicts: tuple[str, str]) -> str:
    """Text that makes chains lead elsewhere: table -> (chain, its new target, empty for none)."""
    text = ""
    for version in versions:
        text += f"{HEADS[version]}\n"
        for table, (name, to) in verdicts.items():
            lines = [f"*{table}", f":{chain(name)} - [0:0]"]
            if to:
                lines.append(f"-A {chain(name)} {rule('', jump(to), _FLIPS[to])}")
            text += "\n".join([*lines, "COMMIT", ""])
    return text


#: The closed ones as the chains have them from the start.
_FLIPS = {
    "to_proxy": "flips when the proxy is dead",
    "around_proxy": "the proxy is dead",
    "to_resolver": "names are captured",
    "around_resolver": "the resolver is dead",
    "captured_zone": "names are captured",
}
