"""The legacy chains for what is redirected as it comes in: for listening processes, and from named bridges. Pure.

The same meaning as chains_inbound.py and chains_bridges.py, in table nat's PREROUTING:
- Containers are looked after first of all. What comes in for a process is turned to the proxy last of all, behind
  everybody's DNAT, so a port that docker publishes stays docker's: the jump to ``arriving`` is the one that the guard
  keeps at the end of its chain (legacy_text.LAST_CHAIN).
- By REDIRECT only. xt_TPROXY works in table mangle, before anybody's DNAT, and drops what it finds no listener for:
  with a dead proxy callers would wait instead of being refused or let through.
- What is to be refused is redirected to port 15001: the proxy listens there on loopback only, so on the address that
  REDIRECT takes, the one of the interface, TCP itself refuses. A REJECT of what was redirected would answer with our
  port instead of the one that was dialled where bridges call netfilter (seen, kernel 6.18): nobody knows it as theirs.
"""

from collections.abc import Iterable

from meshagent.agent.capture import text as nft_text
from meshagent.agent.capture.iptables_text import NOT_SYN, Chains, jump, lookup, rule
from meshagent.agent.capture.values import Intent
from meshagent.model.address import VIRTUAL4, VIRTUAL6, MeshAddress
from meshagent.model.ports import BRIDGED, INBOUND, OUTBOUND

#: Chain that a gate flips, where it leads while closed, and while open.
BRIDGED_GATE = ("bridged_gate", "bridged_to_proxy", "bridged_around")
INBOUND_GATE = ("inbound_gate", "to_inbound", "around_inbound")

#: Rules that refuse by redirecting to where nobody listens.
_REFUSED = [
    rule(f"-p {kind}", f"-j REDIRECT --to-ports {OUTBOUND}", "refused: nobody listens there") for kind in ("tcp", "udp")
]

_LOCAL = "-m addrtype --dst-type LOCAL"
_ONLY_NEW = rule(NOT_SYN, "-j RETURN", "only new connections: open ones stay what they are")
_FLIPS = "flips when the proxy is dead"


def redirected(intent: Intent, version: int) -> list[int]:
    """Ports of ours to which something from outside is redirected."""
    found = [BRIDGED] if version in intent.bridged_families else []
    found += [INBOUND] if version in intent.arriving_families else []
    return [OUTBOUND, *found] if found else []


def hung(intent: Intent, version: int) -> dict[str, list[str]]:
    """Chains of table nat that are empty, and what they hold while the proxy hangs."""
    bridged = {"bridged_hung": _REFUSED[:1]} if version in intent.bridged_families else {}
    return bridged | ({"inbound_hung": _REFUSED[:1]} if version in intent.arriving_families else {})


def nat(intent: Intent, version: int) -> tuple[list[tuple[str, str]], Chains]:
    """Jumps from the kernel's chains, in order, and the chains."""
    jumps: list[tuple[str, str]] = []
    chains: Chains = {}
    if version in intent.bridged_families:
        jumps.append(("PREROUTING", "bridged"))
        _bridged(intent, version, chains)
    if version in intent.arriving_families:
        jumps.append(("PREROUTING", "arriving"))
        _arriving(intent, version, chains)
    return jumps, chains


def ports(intent: Intent, version: int) -> list[int]:
    """Those that are redirected because the mesh says so; what the proxy gets of them isn't judged in the kernel."""
    return [each.port for each in intent.redirected if version in each.families]


def left_over(intent: Intent, version: int) -> list[str]:
    """What a container still sends to a virtual address was not captured; forwarded it would vanish unanswered."""
    reason = "a packet of a container to a virtual address that was not captured"
    target = jump("nowhere")
    if version not in intent.bridged_families:
        return []
    return [rule(f"-d {_virtual(version)} -i {name}", target, reason) for name in intent.bridges]


def _virtual(version: int) -> str:
    return str(VIRTUAL4 if version == 4 else VIRTUAL6)


def _bridged(intent: Intent, version: int, chains: Chains) -> None:
    why, left = "new connections of containers to the mesh", "a virtual address: port not declared, or not TCP"
    chains["bridged"] = [rule(f"-i {name} -p tcp", jump("bridged_mesh"), why) for name in intent.bridges]
    chains["bridged"] += [
        rule(f"-d {_virtual(version)} -i {name}", jump("bridged_nowhere"), left) for name in intent.bridges
    ]
    chains["bridged_nowhere"] = [rule(NOT_SYN, "-j RETURN", "only new connections"), *_REFUSED]
    chains["bridged_mesh"] = [
        _ONLY_NEW,
        rule(_LOCAL, "-j RETURN", "own addresses are direct, before any claim"),
        *_ports(nft_text.merged(intent.exclude.ports), "ports excluded in agent.yaml"),
        *(
            rule(f"-d {network}", "-j RETURN", "a network excluded in agent.yaml")
            for network in nft_text.outermost(intent.exclude.cidrs, version)
        ),
        rule(f"-d {_virtual(version)}", jump("b_virtual"), "virtual addresses have no direct way"),
        rule("", jump("b_claimed"), "addresses of machines that the mesh looks after"),
    ]
    gate, to_proxy, around = BRIDGED_GATE
    virtual, claimed = _of(intent.virtual, version), _of(intent.claimed, version)
    chains |= lookup("b_virtual", virtual, to_proxy, "virtual address and port of a service")
    chains |= lookup("b_claimed", claimed, gate, "literal address and port of a service")
    chains[gate] = [rule("", jump(to_proxy), _FLIPS)]
    chains[to_proxy] = _to_proxy("bridged_hung", BRIDGED)
    chains["bridged_hung"] = []
    chains[around] = [rule("", "-j RETURN", "around the proxy: it is dead")]


def _arriving(intent: Intent, version: int, chains: Chains) -> None:
    gate, to_proxy, around = INBOUND_GATE
    chains["arriving"] = [
        rule("-i lo", "-j RETURN", "what this host says to itself"),
        _ONLY_NEW,
        rule("-p tcp", jump("arriving_new"), "new connections from outside"),
    ]
    chains["arriving_new"] = [
        rule("-m addrtype ! --dst-type LOCAL", "-j RETURN", "only what is for this host: never what is forwarded"),
        *(
            rule(f"-p tcp -m tcp --dport {port}", "-j RETURN", "requires mutual TLS: refused in table filter")
            for port in intent.strict_ports
            if port not in ports(intent, version)
        ),
        *_ports(
            nft_text.merged(intent.inbound_direct_ports),
            "never redirected: sshd, this session, the ports of the mesh, excluded ones",
        ),
        *(
            rule(f"-s {network}", "-j RETURN", "a network excluded in agent.yaml")
            for network in nft_text.outermost(intent.exclude.cidrs, version)
        ),
        *(rule(f"-i {name}", "-j RETURN", "an interface excluded in agent.yaml") for name in intent.exclude.interfaces),
        rule("-m socket --transparent --nowildcard", "-j RETURN", "whoever listens for other hosts is no process here"),
        *(
            rule(f"-p tcp {chosen}-m socket --nowildcard", jump(gate), "somebody listens there")
            for chosen in _chosen(intent, version)
        ),
    ]
    chains[gate] = [rule("", jump(to_proxy), _FLIPS)]
    chains[to_proxy] = _to_proxy("inbound_hung", INBOUND)
    chains["inbound_hung"] = []
    chains[around] = [rule("", "-j RETURN", "around the proxy: it is dead, the process is here")]


def _chosen(intent: Intent, version: int) -> list[str]:
    """Everything that was asked for in agent.yaml, else the ports that the mesh names."""
    if version in intent.inbound_families:
        return [""]
    return [f"-m tcp --dport {port} " for port in ports(intent, version)]


def _to_proxy(hung: str, port: int) -> list[str]:
    refuse = rule("", jump(hung), "filled while the proxy hangs")
    return [refuse, rule("-p tcp", f"-j REDIRECT --to-ports {port}", "to the proxy")]


def _ports(ranges: Iterable[object], reason: str) -> list[str]:
    return [rule(f"-p tcp -m tcp --dport {str(each).replace('-', ':')}", "-j RETURN", reason) for each in ranges]


def _of(pairs: Iterable[MeshAddress], version: int) -> list[MeshAddress]:
    return [pair for pair in pairs if pair.ip.version == version]
