"""Host firewalls and what they do to mesh peers: who is in charge, does it let them in, and how. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from meshagent.agent.capture.values import Intent
from meshagent.agent.judge import nft_rules, saved_rules
from meshagent.agent.judge.packets import Fate, fates
from meshagent.config.settings import RedirectMode
from meshagent.model.marks import ANCHOR_TABLE, HOLD_TABLE, TABLE
from meshagent.model.ports import BRIDGED, HBONE, INBOUND

OPEN, BLOCKS, DEPENDS = "open", "blocks", "depends"
#: Tables that iptables-nft makes beside filter: worth a word only when they refuse.
_BESIDE_FILTER = ("raw", "mangle", "security")
_SEVERITY = (OPEN, DEPENDS, BLOCKS)
#: Port -> who comes in there, and what they can't do where it is refused.
_WHO = {
    HBONE: ("mesh peers", "can't reach this host"),
    INBOUND: ("callers", "can't reach what capture.inbound: all redirects"),
    BRIDGED: ("containers", "can't reach the mesh"),
}


@dataclass(frozen=True, slots=True)
class Firewall:
    """``verdict`` on ``port`` is ``open``, ``blocks`` or ``depends``; ``allow`` the line that lets callers in, else
    empty."""

    name: str
    verdict: str
    text: str
    allow: str
    port: int = HBONE


def needed_ports(intent: Intent) -> tuple[int, ...]:
    """Where others come in by these rules; by TPROXY a firewall sees the port that was dialled, as always."""
    redirects = intent.inbound_families and intent.inbound_mode is RedirectMode.REDIRECT
    return (HBONE, *((INBOUND,) if redirects else ()), *((BRIDGED,) if intent.bridged_families else ()))


def judge_firewalls(
    nft: str | None,
    saved: Mapping[str, str],
    managers: frozenset[str],
    zone: str,
    flushes: bool,
    port: int = HBONE,
) -> tuple[Firewall, ...]:
    """Fields as in ``machine.firewalls.Firewalls``. Managers first, then rules that nobody manages."""
    verdicts = dict(_rulesets(nft, saved, port))
    found: list[Firewall] = []
    for manager in sorted(managers):
        mine = {name: verdict for name, verdict in verdicts.items() if _belongs(name, manager)}
        found.append(_manager(manager, mine, zone, flushes, port))
        if manager in ("ufw", "firewalld"):
            verdicts = {name: verdict for name, verdict in verdicts.items() if name not in mine}
    unmanaged = (
        Firewall(n, v, _words(v, port), _by_hand(n, port) if v != OPEN else "", port) for n, v in verdicts.items()
    )
    return (*found, *unmanaged)


def _words(verdict: str, port: int) -> str:
    who, loss = _WHO[port]
    return {
        OPEN: f"lets port {port} in",
        BLOCKS: f"refuses port {port}: {who} {loss}",
        DEPENDS: f"lets port {port} in from some places only: {who} elsewhere {loss}",
    }[verdict]


def _rulesets(nft: str | None, saved: Mapping[str, str], port: int) -> Iterable[tuple[str, str]]:
    """(name, verdict) of everything in the kernel that filters what comes in, ours left out."""
    for command, text in saved.items():
        chains, policies = saved_rules.parse(text, port)
        if "INPUT" in policies:
            yield command, _verdict(fates(chains, "INPUT", policies["INPUT"]))
    by_iptables = {("ip6" if name.startswith("ip6") else "ip", "filter") for name in saved if name.endswith("nft")}
    for table in nft_rules.parse(nft or "", port):
        ours = table.name in (TABLE, ANCHOR_TABLE, HOLD_TABLE)
        if ours or table.family not in ("inet", "ip", "ip6") or (table.family, table.name) in by_iptables:
            continue
        each = [fates(table.chains, base, policy) for base, policy in table.bases.items()]
        refused = any(found == {Fate.REFUSED} for found in each)
        together = {Fate.REFUSED} if refused else {fate for found in each for fate in found}
        if together == {Fate.REFUSED} or table.name not in _BESIDE_FILTER:
            yield f"nft table {table.family} {table.name}", _verdict(together)


def _verdict(found: Iterable[Fate]) -> str:
    fates_found = set(found)
    if fates_found == {Fate.REFUSED}:
        return BLOCKS
    return DEPENDS if Fate.REFUSED in fates_found else OPEN


def _belongs(ruleset: str, manager: str) -> bool:
    """ufw speaks iptables, firewalld has a table of its own or speaks iptables; the service's tables have any name."""
    if manager == "docker":
        return False
    if manager == "nftables.service":
        return ruleset.startswith("nft table") and ruleset != "nft table inet firewalld"
    return not ruleset.startswith("nft table") or (manager == "firewalld" and ruleset.endswith("inet firewalld"))


def _together(verdicts: Mapping[str, str]) -> str:
    """Of one IP version the strictest counts; where the versions differ it depends on who calls how."""
    versions: dict[int, str] = {}
    for name, verdict in verdicts.items():
        for version in (4,) if name.startswith(("iptables", "nft table ip ")) else (6,) if "ip6" in name else (4, 6):
            versions[version] = max(versions.get(version, OPEN), verdict, key=_SEVERITY.index)
    return next(iter(versions.values())) if len(set(versions.values())) == 1 else DEPENDS if versions else OPEN


def _manager(name: str, verdicts: Mapping[str, str], zone: str, flushes: bool, port: int) -> Firewall:
    if name == "docker":
        return Firewall(name, OPEN, "its rules are for forwarded traffic, which is not captured", "", port)
    verdict = _together(verdicts)
    text = _words(verdict, port) if verdicts else f"has no rules in the kernel now, so {_words(OPEN, port)}"
    if name == "nftables.service":
        if flushes:
            text += (
                "; each of its starts removes everybody's rules (flush ruleset): ours stay or come back by themselves"
            )
        return Firewall(name, verdict, text, _in_file(port) if verdict != OPEN else "", port)
    lines = {
        "ufw": f"ufw allow {port}/tcp",
        "firewalld": f"firewall-cmd --permanent --zone={zone} --add-port={port}/tcp && firewall-cmd --reload",
    }
    return Firewall(name, verdict, text, lines[name] if verdict != OPEN else "", port)


def _in_file(port: int) -> str:
    return f"add `tcp dport {port} accept` to the input chain in /etc/nftables.conf, then: systemctl reload nftables"


def _by_hand(name: str, port: int) -> str:
    if name.startswith("nft table"):
        _, _, family, table = name.split(" ", 3)
        return f"nft insert rule {family} {table} CHAIN tcp dport {port} accept (CHAIN: the one with hook input)"
    return f"{name} -I INPUT -p tcp --dport {port} -j ACCEPT"
