"""The chains of the legacy backend, one function for each table of the kernel. Pure.

The same meaning as chains.py, said with what iptables has:
- REJECT exists in table filter only, which is behind NAT. So "our own ports are reached by redirect only" asks whether
  the connection was redirected (conntrack's state DNAT) instead of coming before the redirect.
- A rule has one address and a mark match one value, so lists become rules, and thousands of addresses become chains by
  network. Exemptions stand in front of the addresses: they are few.
- Each verdict that a bypass flips is a chain of one rule.
- Who calls in plain text goes into a list of xt_recent for each port: the last 100 addresses with at most 32 times.
"""

from collections.abc import Iterable

from meshagent.agent.capture import iptables_arriving, iptables_published
from meshagent.agent.capture import text as nft_text
from meshagent.agent.capture.iptables_text import NOT_SYN, SYN, Chains, host, jump, lookup, remember, rule, table
from meshagent.agent.capture.values import Intent, Ipv6, Mode
from meshagent.model.address import VIRTUAL4, VIRTUAL6, IPAddress, MeshAddress
from meshagent.model.marks import (
    AGENT_MARK,
    CLIENT_SOURCE_MARK,
    DNS_CAPTURED_ZONE,
    DNS_ZONE,
    PROXY_MARK,
    PROXY_ZONE,
    PUBLISHED_MARK,
)
from meshagent.model.ports import DNS, OUTBOUND, OWN_LOCAL_PORTS

_LOCAL = "-m addrtype --dst-type LOCAL"
_RESET = "-j REJECT --reject-with tcp-reset"
_PORT_CLOSED = {4: "-j REJECT --reject-with icmp-port-unreachable", 6: "-j REJECT --reject-with icmp6-port-unreachable"}
_PROHIBITED = {4: "-j REJECT --reject-with icmp-admin-prohibited", 6: "-j REJECT --reject-with icmp6-adm-prohibited"}
_WHOLE = "0xffffffff"


def raw(intent: Intent, version: int) -> str:
    zone = "the conntrack zone of the proxy: stale entries of captured connections must not catch its packets"
    own = "the queries of the agent itself: never those it answers"
    zones = [
        *(rule(_mark(mark), f"-j CT --zone-orig {PROXY_ZONE}", zone) for mark in (CLIENT_SOURCE_MARK, PROXY_MARK)),
        *(
            rule(f"-p {kind} -m {kind} --dport 53 {_mark(AGENT_MARK)}", f"-j CT --zone-orig {DNS_ZONE}", own)
            for kind in ("tcp", "udp")
        ),
    ]
    chains: Chains = {"zones": zones}
    if servers := nameservers(intent, version):
        reason = "DNS queries that are captured, also those of open sockets"
        zones += [rule(f"{host(ip, version)} -p udp -m udp --dport 53", jump("names_zone"), reason) for ip in servers]
        captured = f"-j CT --zone-orig {DNS_CAPTURED_ZONE}"
        chains["names_zone"] = [*_ours(intent), rule("", jump("names_zone_gate"), "flips when the resolver is dead")]
        chains["names_zone_gate"] = [rule("", jump("captured_zone"), "names are captured")]
        chains["captured_zone"] = [rule("", captured, "captured queries, free again when capture ends")]
    return table("raw", [("OUTPUT", "zones")], chains)


def mangle(intent: Intent, version: int) -> str:
    """The proxy connects to the application from the caller's address; the answers must come back to the proxy."""
    mark = f"{CLIENT_SOURCE_MARK:#x}"
    rules = [
        rule(
            f"-m conntrack --ctdir ORIGINAL {_mark(CLIENT_SOURCE_MARK)}",
            f"-j CONNMARK --set-xmark {mark}/{_WHOLE}",
            "the proxy speaks to the application from the address of its caller",
        ),
        rule(
            f"-m conntrack --ctdir ORIGINAL {_mark(CLIENT_SOURCE_MARK)}",
            f"-j MARK --set-xmark 0x0/{_WHOLE}",
            "the way to it is the usual one, also to a container whose port is published here",
        ),
        rule(
            f"-m conntrack --ctdir REPLY -m connmark --mark {mark}",
            f"-j MARK --set-xmark {mark}/{_WHOLE}",
            "answers of the application go back to the proxy, not out to the caller",
        ),
    ]
    published = rule(
        f"! -i lo -m conntrack --ctdir REPLY -m connmark --mark {mark}",
        f"-j MARK --set-xmark {PUBLISHED_MARK:#x}/{_WHOLE}",
        "answers of a container whose port is published here go back to the proxy, too",
    )
    noted = iptables_published.noted(intent, version)
    jumps = [("PREROUTING", "published"), ("OUTPUT", "client_address")]
    return table("mangle", jumps, {"published": [published, *noted], "client_address": rules})


# --- NAT: names, then mesh addresses ---------------------------------------------------------------------------------


def nat(intent: Intent, version: int) -> str:
    """Empty where nothing of this family is redirected."""
    chains: Chains = {"nat": []}
    if servers := nameservers(intent, version):
        _names(intent, servers, version, chains)
    if version == 4 or intent.ipv6 is Ipv6.CAPTURE:
        chains["nat"].append(rule("-p tcp", jump("outbound"), "new connections to the mesh"))
        _outbound(intent, version, chains)
    if not chains["nat"]:
        return ""
    jumps, more = iptables_arriving.nat(intent, version)
    return table("nat", [("OUTPUT", "nat"), *jumps], chains | more)


def _names(intent: Intent, servers: list[IPAddress], version: int, chains: Chains) -> None:
    chains["nat"] += [
        rule(f"{host(ip, version)} -p {kind} -m {kind} --dport 53", jump("names"), "DNS to a server of resolv.conf")
        for ip in servers
        for kind in ("tcp", "udp")
    ]
    chains["names"] = [
        rule(NOT_SYN, "-j RETURN", "only new connections: open ones stay what they are"),
        *_ours(intent),
        rule("", jump("names_gate"), "flips when the resolver is dead"),
    ]
    chains["names_gate"] = [rule("", jump("to_resolver"), "names are captured")]
    to_resolver = f"-j REDIRECT --to-ports {DNS}"
    chains["to_resolver"] = [rule(f"-p {kind}", to_resolver, "to our resolver") for kind in ("tcp", "udp")]
    chains["around_resolver"] = [rule("", "-j RETURN", "around the resolver: it is dead")]


def _outbound(intent: Intent, version: int, chains: Chains) -> None:
    chains["outbound"] = [
        rule(NOT_SYN, "-j RETURN", "only new connections: open ones stay what they are"),
        *_ours(intent),
        rule(_LOCAL, "-j RETURN", "own addresses are direct, before any claim"),
        *_excluded(intent, version),
        rule(f"-d {VIRTUAL4 if version == 4 else VIRTUAL6}", jump("virtual"), "virtual addresses have no direct way"),
    ]
    chains |= lookup("virtual", _of(intent.virtual, version), "to_proxy", "virtual address and port of a service")
    if version in intent.everything_families:
        # whatever is claimed is among everything, and so it is counted once while it goes around a dead proxy
        chains["outbound"].append(rule("", jump("everything"), "capture.outbound is all"))
        gate = rule("", jump("claimed_gate"), "all that leaves, passed on by the proxy")
        chains["everything"] = [*_never(intent, version), gate]
    else:
        chains["outbound"].append(rule("", jump("claimed"), "addresses of machines that the mesh looks after"))
        reason = "literal address and port of a service"
        chains |= lookup("claimed", _of(intent.claimed, version), "claimed_gate", reason)
    chains["claimed_gate"] = [rule("", jump("to_proxy"), "flips when the proxy is dead")]
    chains["to_proxy"] = [rule("-p tcp", f"-j REDIRECT --to-ports {OUTBOUND}", "to the proxy")]
    around = "around the proxy: it is dead and the address has a machine of its own"
    chains["around_proxy"] = [rule("", "-j RETURN", around)]


def _never(intent: Intent, version: int) -> Iterable[str]:
    hosts = "never through the proxy: hub, gateways, resolvers, loopback, link-local, metadata, multicast"
    for network in nft_text.outermost(intent.direct, version):
        yield rule(f"-d {network}", "-j RETURN", hosts)
    for ports in nft_text.merged(intent.direct_ports):
        yield rule(
            f"-p tcp -m tcp --dport {_range(str(ports))}",
            "-j RETURN",
            "never through the proxy: ssh, and its own ports",
        )


def _excluded(intent: Intent, version: int) -> Iterable[str]:
    exclude = intent.exclude
    matches = [
        *((f"-m owner --uid-owner {uid}", "a user excluded in agent.yaml") for uid in exclude.uids),
        *((f"-m owner --gid-owner {gid}", "a group excluded in agent.yaml") for gid in exclude.gids),
        *((f"-o {name}", "an interface excluded in agent.yaml") for name in exclude.interfaces),
        *((f"-p tcp -m tcp --dport {_range(ports)}", "ports excluded in agent.yaml") for ports in _merged(intent)),
        *((f"-d {net}", "a network excluded in agent.yaml") for net in nft_text.outermost(exclude.cidrs, version)),
    ]
    return (rule(match, "-j RETURN", reason) for match, reason in matches)


def _merged(intent: Intent) -> list[str]:
    return [str(ports) for ports in nft_text.merged(intent.exclude.ports)]


def _range(ports: str) -> str:
    return ports.replace("-", ":")


# --- filter: own ports, what is left for virtual addresses, plain text -----------------------------------------------


def filtering(intent: Intent, version: int) -> str:
    own_ports = "own ports: reached by redirect only"
    syn_to_own = f"{SYN} {_own(intent, version)} {_LOCAL}"
    output = [
        rule(syn_to_own, jump("own_ports"), own_ports),
        rule(f"-p udp -m udp --dport {DNS} {_LOCAL}", jump("own_ports"), own_ports),
        *_left_over(intent, version),
    ]
    chains: Chains = {
        "output": output,
        "own_ports": [
            rule(_mark(AGENT_MARK), "-j RETURN", "the agent probes its own ports"),
            rule("", jump("hung_gate"), "filled while the proxy hangs"),
            *_no_port(intent, version),
            rule("-m conntrack --ctstate DNAT", "-j RETURN", "redirected here by our own rules"),
            rule("-p tcp", _RESET, "our own ports are reached by redirect only, also by local users"),
            rule("", _PORT_CLOSED[version], "our resolver is reached by redirect only"),
        ],
        "hung_gate": [],
        "nowhere": [
            rule("-p tcp", _RESET, "refused at once instead of a timeout"),
            rule("", _PROHIBITED[version], "refused at once: services are TCP only"),
        ],
        "input": [
            rule(f"! -i lo {syn_to_own}", _RESET, "our own ports are not for other hosts"),
        ],
    }
    if redirected := iptables_arriving.redirected(intent, version):
        chains["input"] = [rule(f"! -i lo {syn_to_own}", jump("own_outside"), "own ports, called by other hosts")]
        by_us = f"-p tcp -m multiport --dports {','.join(map(str, redirected))} -m conntrack --ctstate DNAT"
        chains["own_outside"] = [
            rule(by_us, "-j RETURN", "came by a redirect"),
            rule("-p tcp", _RESET, "our own ports are not for other hosts"),
        ]
    if version == 6 and intent.ipv6 is Ipv6.REFUSE:
        direct = rule(_LOCAL, "-j RETURN", "own addresses are direct, before any claim")
        never = _never(intent, 6) if intent.all_families else ()
        end = rule("", jump("nowhere"), "capture.ipv6 is refuse")
        chains["refuse_ipv6"] = [*_ours(intent), direct, *_excluded(intent, 6), *never, end]
    if _of(intent.unserved, version):
        direct = rule(_LOCAL, "-j RETURN", "own addresses are direct, before any claim")
        end = rule("", jump("nowhere"), "refused, never direct")
        chains["refuse_unserved"] = [*_ours(intent), direct, *_excluded(intent, version), end]
    if intent.counted_ports or intent.strict_ports:
        what = "new connections from other hosts: mesh peers come by port 15008 and reach the application over lo"
        chains["input"].append(rule(f"! -i lo {SYN} {_LOCAL}", jump("inbound"), what))
        chains["inbound"] = [*iptables_published.received(intent, version), *_plain_text(intent, version)]
    jumps = [("OUTPUT", "output"), ("INPUT", "input")]
    if left_over := iptables_arriving.left_over(intent, version):
        chains["bridged_left_over"] = left_over
        jumps.append(("FORWARD", "bridged_left_over"))
    if judged := iptables_published.judged(intent, version):
        chains |= judged
        jumps.append(("FORWARD", "forwarded"))
    return table("filter", jumps, chains)


def _no_port(intent: Intent, version: int) -> list[str]:
    """Redirected as if the proxy had a port for it, and refused on the way: so what stays direct is the same."""
    match = f"-p tcp -m tcp --dport {OUTBOUND} -m conntrack --ctstate DNAT"
    reason = "capture.outbound is all: the proxy has no port for it, and the policy is closed"
    return [rule(match, jump("nowhere"), reason)] if version in intent.refused_families else []


def _own(intent: Intent, version: int) -> str:
    ports = sorted({*OWN_LOCAL_PORTS, *iptables_arriving.redirected(intent, version)})
    return f"-m multiport --dports {','.join(map(str, ports))}"


def _left_over(intent: Intent, version: int) -> Iterable[str]:
    """Behind NAT: what still has a virtual address here was not captured, and has nowhere to go."""
    if version == 6 and intent.ipv6 is Ipv6.LEAVE:
        return
    reason = "a virtual address that was not captured: port not declared, or not TCP"
    yield rule(f"-d {VIRTUAL4 if version == 4 else VIRTUAL6}", jump("nowhere"), reason)
    for pair in _of(intent.unserved, version):
        match = f"{host(pair.ip, version)} {SYN.replace('--tcp-flags', f'--dport {pair.port} --tcp-flags')}"
        yield rule(match, jump("refuse_unserved"), "literal address; no port of the proxy, and the policy is closed")
    if version == 6 and intent.ipv6 is Ipv6.REFUSE and intent.mode is Mode.ACTIVE:
        for pair in _of(intent.claimed, 6):
            match = f"{host(pair.ip, 6)} {SYN.replace('--tcp-flags', f'--dport {pair.port} --tcp-flags')}"
            yield rule(match, jump("refuse_ipv6"), "capture.ipv6 is refuse")
        if 6 in intent.all_families:
            yield rule(SYN, jump("refuse_ipv6"), "capture.outbound is all, capture.ipv6 is refuse")


def _plain_text(intent: Intent, version: int) -> Iterable[str]:
    judged_by_proxy = iptables_arriving.ports(intent, version)
    for port in intent.counted_ports:
        redirected = version in intent.inbound_families and port not in judged_by_proxy
        # the port that was dialled: after a REDIRECT only conntrack knows
        match = f"-p tcp -m conntrack --ctorigdstport {port}" if redirected else f"-p tcp -m tcp --dport {port}"
        yield remember("callers", port, match, version, "plain text on a declared port: counted, left alone")
    for port in intent.strict_ports:
        match = f"-p tcp -m tcp --dport {port}"
        yield remember("refused", port, match, version, "plain text on a port that requires mutual TLS")
        yield rule(match, _RESET, "mutual TLS is required: new plain connections are refused")


# --- shared ----------------------------------------------------------------------------------------------------------


def nameservers(intent: Intent, version: int) -> list[IPAddress]:
    return [address for address in intent.nameservers if address.version == version]


def _of(pairs: Iterable[MeshAddress], version: int) -> list[MeshAddress]:
    return [pair for pair in pairs if pair.ip.version == version]


def _mark(mark: int) -> str:
    return f"-m mark --mark {mark:#x}"


def _ours(intent: Intent) -> list[str]:
    reason = "the proxy and the agent go direct"
    marks = [rule(_mark(mark), "-j RETURN", reason) for mark in (CLIENT_SOURCE_MARK, AGENT_MARK, PROXY_MARK)]
    return [*marks, rule(f"-m owner --uid-owner {intent.proxy_uid}", "-j RETURN", "the proxy goes direct")]
