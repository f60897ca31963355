"""The chains of our table, one function each, in the order in which the kernel meets them. Pure.

Comments in the rules are for whoever reads ``nft list table inet meshagent`` at 3 a.m.; those here say why.
"""

from meshagent.agent.capture import text
from meshagent.agent.capture.values import Intent, Ipv6, Mode
from meshagent.config.settings import RedirectMode
from meshagent.model.address import VIRTUAL4, VIRTUAL6
from meshagent.model.cgroup import Cgroup
from meshagent.model.marks import (
    AGENT_MARK,
    CLIENT_SOURCE_MARK,
    DNS_CAPTURED_ZONE,
    DNS_ZONE,
    PROXY_MARK,
    PROXY_ZONE,
    PUBLISHED_MARK,
)
from meshagent.model.ports import BRIDGED, DNS, INBOUND, OUTBOUND, OWN_LOCAL_PORTS

HUNG = "filled while the proxy is dead or hangs: refused at once, also if a stranger has its port"
NOT_SYN = "tcp flags & (fin|syn|rst|ack) != syn"
SYN = "tcp flags & (fin|syn|rst|ack) == syn"
_PROXY_MARKS = f"{{ {CLIENT_SOURCE_MARK:#x}, {PROXY_MARK:#x} }}"
_OUR_MARKS = f"{{ {CLIENT_SOURCE_MARK:#x}, {AGENT_MARK:#x}, {PROXY_MARK:#x} }}"


def zones(intent: Intent) -> list[str]:
    rules = [
        text.rule(
            f"meta mark {_PROXY_MARKS}",
            f"ct original zone set {PROXY_ZONE}",
            "the proxy's own connections: stale entries of captured ones must not catch them",
        ),
        text.rule(
            f"meta mark {AGENT_MARK:#x} meta l4proto {{ tcp, udp }} th dport 53",
            f"ct original zone set {DNS_ZONE}",
            "the agent's own DNS queries: never those it answers",
        ),
    ]
    for family, name in _nameserver_matches(intent):
        rules.append(
            text.rule(
                f"{family} daddr @{name} udp dport 53 meta mark != {_OUR_MARKS} meta skuid != {intent.proxy_uid}",
                "meta l4proto vmap @names_zone_gate",
                "DNS queries that are captured, also those of open sockets",
            )
        )
    blocks = [text.chain("zones", "filter hook output priority raw", rules)]
    if intent.nameservers:
        zone = text.rule(
            "", f"ct original zone set {DNS_CAPTURED_ZONE}", "captured queries, free again when capture ends"
        )
        blocks.append(text.chain("captured_zone", "", [zone]))
    return blocks


def client_address() -> list[str]:
    """The proxy connects to the application from the caller's address; the answers must come back to the proxy.

    Its packets lose the mark here: should a DNAT turn them to a container (docker run -p), the mark would route them to
    this host instead. The container's answers come in by a bridge, not by output, and get the mark there.
    """
    rules = [
        text.rule(
            f"ct direction original meta mark {CLIENT_SOURCE_MARK:#x}",
            f"ct mark set {CLIENT_SOURCE_MARK:#x} meta mark set 0",
            "the proxy speaks to the application from its caller's address",
        ),
        text.rule(
            f"ct direction reply ct mark {CLIENT_SOURCE_MARK:#x}",
            f"meta mark set {CLIENT_SOURCE_MARK:#x}",
            "the application's answers go back to the proxy, not out to the caller",
        ),
    ]
    published = text.rule(
        f"iif != lo ct direction reply ct mark {CLIENT_SOURCE_MARK:#x}",
        f"meta mark set {PUBLISHED_MARK:#x}",
        "answers of a container whose port is published here go back to the proxy, too",
    )
    return [
        text.chain("client_address", "route hook output priority mangle", rules),
        text.chain("published", "filter hook prerouting priority mangle", [published]),
    ]


def own_ports(intent: Intent) -> list[str]:
    """Before NAT, so that what is redirected to these ports later passes."""
    own = _own(intent)
    rules = [
        text.rule(f"meta mark {AGENT_MARK:#x}", "return", "the agent probes its own ports"),
        text.rule(
            f"tcp dport {own} {SYN} fib daddr type local",
            "reject with tcp reset",
            "our own ports are reached by redirect only, also by local users",
        ),
        text.rule(
            f"udp dport {DNS} fib daddr type local",
            "reject with icmpx port-unreachable",
            "our resolver is reached by redirect only",
        ),
    ]
    outside = [
        text.rule(
            f"iif != lo tcp dport {own} {SYN} fib daddr type local",
            "reject with tcp reset",
            "our own ports are not for other hosts",
        )
    ]
    if redirected := _redirected_from_outside(intent):
        match = f"iif != lo tcp dport {{ {', '.join(map(str, redirected))} }} ct status dnat"
        outside.insert(0, text.rule(match, "return", "came by a redirect"))
    return [
        text.chain("own_ports", "filter hook output priority mangle", rules),
        text.chain("own_ports_outside", "filter hook input priority mangle", outside),
    ]


def _redirected_from_outside(intent: Intent) -> list[int]:
    """Ports of ours to which something from outside is redirected."""
    inbound = intent.arriving_families and intent.inbound_mode is RedirectMode.REDIRECT
    return [*([BRIDGED] if intent.bridged_families else []), *([INBOUND] if inbound else [])]


def _own(intent: Intent) -> str:
    ports = sorted((*OWN_LOCAL_PORTS, *((BRIDGED,) if intent.bridged_families else ())))
    return f"{{ {', '.join(map(str, ports))} }}"


def names(intent: Intent) -> list[str]:
    if not intent.nameservers:
        return []
    entry = [
        text.rule(
            f"{family} daddr @{name} meta l4proto {{ tcp, udp }} th dport 53",
            "goto names",
            "DNS to the nameservers of resolv.conf",
        )
        for family, name in _nameserver_matches(intent)
    ]
    rules = [
        *_exemptions(intent),
        text.rule("", "meta l4proto vmap @names_gate", "the verdict flips when the resolver is dead"),
    ]
    capture = text.rule("meta l4proto { tcp, udp }", f"redirect to :{DNS}", "to the agent's resolver")
    around = text.rule("", "return", "around the resolver: it is dead")
    return [
        text.chain("names_entry", "nat hook output priority -101", entry),
        text.chain("names", "", rules),
        text.chain("to_resolver", "", [capture]),
        text.chain("around_resolver", "", [around]),
    ]


def _nameserver_matches(intent: Intent) -> list[tuple[str, str]]:
    present = {address.version for address in intent.nameservers}
    return [(FAMILY[version], f"nameservers{version}") for version in (4, 6) if version in present]


FAMILY = {4: "ip", 6: "ip6"}


def outbound(intent: Intent) -> list[str]:
    versions = (4, 6) if intent.ipv6 is Ipv6.CAPTURE else (4,)
    entry, gated = [], []
    for version in versions:
        key = f"{FAMILY[version]} daddr . tcp dport"
        entry.append(text.rule(f"{key} @virtual{version}", "goto mesh", "virtual address and port of a service"))
        entry.append(text.rule(f"{key} @claimed{version}", "goto mesh", "literal address and port of a service"))
        gated.append(
            text.rule(f"{key} @claimed{version}", "meta l4proto vmap @claimed_gate", "flips when the proxy is dead")
        )
    for version in (version for version in versions if version in intent.everything_families):
        entry.append(
            text.rule(f"meta nfproto ipv{version} meta l4proto tcp", "goto everything", "capture.outbound: all")
        )
    virtual = text.rule("", "goto to_proxy", "virtual addresses have no direct way")
    capture = text.rule("meta l4proto tcp", f"redirect to :{OUTBOUND}", "to the proxy")
    around = text.rule("", "return", "around the proxy: it is dead and the address has a machine of its own")
    return [
        text.chain("outbound", "nat hook output priority -100", entry),
        *_walk("mesh", intent, [], [*gated, virtual]),
        *_everything(intent),
        text.chain("to_proxy", "", [capture]),
        text.chain("around_proxy", "", [around]),
    ]


def _everything(intent: Intent) -> list[str]:
    """All that is no address of the mesh. The proxy passes it on, so without a proxy it goes there by itself."""
    if not intent.everything_families:
        return []
    gate = text.rule("", "meta l4proto vmap @claimed_gate", "flips when the proxy is dead")
    return _walk("everything", intent, _never(intent), [gate])


def _walk(name: str, intent: Intent, never: list[str], end: list[str]) -> list[str]:
    """What is exempt leaves first; where only some units are in the mesh, everybody else leaves next."""
    head = [*_exemptions(intent), *_direct(intent), *never]
    if not intent.only_units:
        return [text.chain(name, "", [*head, *end])]
    chosen = [
        text.rule(_cgroup(group), f"goto {name}_of_units", f"cgroup {group.id}: a unit of capture.units")
        for group in intent.units
    ]
    others = text.rule("", "return", "not of a unit that capture.units names")
    return [text.chain(name, "", [*head, *chosen, others]), text.chain(f"{name}_of_units", "", end)]


def _cgroup(group: Cgroup) -> str:
    """The kernel stores the id of what has this path now; the comment shows which one that was."""
    return f'socket cgroupv2 level {group.level} "{group.path}"'


def _never(intent: Intent) -> list[str]:
    rules = [
        text.rule(
            f"{FAMILY[version]} daddr {{ {', '.join(text.outermost(intent.direct, version))} }}",
            "return",
            "never through the proxy: hub, gateways, resolvers, loopback, link-local, metadata, multicast",
        )
        for version in intent.everything_families
    ]
    ports = ", ".join(map(str, text.merged(intent.direct_ports)))
    return [*rules, text.rule(f"tcp dport {{ {ports} }}", "return", "never through the proxy: ssh, and its own ports")]


def _exemptions(intent: Intent) -> list[str]:
    return [
        text.rule(NOT_SYN, "return", "only new connections: open ones stay what they are"),
        text.rule(f"meta mark {_OUR_MARKS}", "return", "the proxy and the agent go direct"),
        text.rule(f"meta skuid {intent.proxy_uid}", "return", "the proxy goes direct"),
    ]


def _direct(intent: Intent) -> list[str]:
    exclude = intent.exclude
    rules = [text.rule("fib daddr type local", "return", "own addresses are direct, before any claim")]
    matches = [
        ("meta skuid", tuple(map(str, exclude.uids)), "users excluded in agent.yaml"),
        ("meta skgid", tuple(map(str, exclude.gids)), "groups excluded in agent.yaml"),
        ("oifname", tuple(f'"{name}"' for name in exclude.interfaces), "interfaces excluded in agent.yaml"),
        ("tcp dport", tuple(map(str, text.merged(exclude.ports))), "ports excluded in agent.yaml"),
        ("ip daddr", text.outermost(exclude.cidrs, 4), "networks excluded in agent.yaml"),
        ("ip6 daddr", text.outermost(exclude.cidrs, 6), "networks excluded in agent.yaml"),
    ]
    rules += [
        text.rule(f"{match} {{ {', '.join(values)} }}", "return", why) for match, values, why in matches if values
    ]
    rules += [
        text.rule(_cgroup(group), "return", f"cgroup {group.id}: a unit excluded in agent.yaml")
        for group in intent.exclude_units
    ]
    return rules


def virtual(intent: Intent) -> list[str]:
    """After NAT: what still has a virtual address here was not captured, and has nowhere to go."""
    reason = "a virtual address that was not captured: port not declared, or not TCP"
    entry = [text.rule(f"ip daddr {VIRTUAL4}", "goto nowhere", reason)]
    if intent.ipv6 is not Ipv6.LEAVE:
        entry.append(text.rule(f"ip6 daddr {VIRTUAL6}", "goto nowhere", reason))
    if intent.mode is Mode.ACTIVE:
        entry.append(
            text.rule(
                f"tcp dport {OUTBOUND} {SYN} ct status dnat",
                "meta l4proto vmap @hung_gate",
                HUNG,
            )
        )
        entry += [
            text.rule(
                f"meta nfproto ipv{version} tcp dport {OUTBOUND} {SYN} ct status dnat",
                "goto nowhere",
                "capture.outbound: all: the proxy has no port for it, and the policy is closed",
            )
            for version in intent.refused_families
        ]
    refused: list[str] = []
    if intent.ipv6 is Ipv6.REFUSE and intent.mode is Mode.ACTIVE:
        entry.append(text.rule("ip6 daddr . tcp dport @claimed6", "goto refuse_ipv6", "literal address of a service"))
        if 6 in intent.all_families:
            entry.append(text.rule("meta nfproto ipv6 meta l4proto tcp", "goto refuse_ipv6", "capture.outbound: all"))
        refused = _refuse_ipv6(intent)
    if not intent.fail_open and intent.mode is Mode.ACTIVE:
        reason = "literal address of a service: the proxy has no port for it, and the policy is closed"
        for version in (4,) if intent.ipv6 is Ipv6.LEAVE else (4, 6):
            match = f"{FAMILY[version]} daddr . tcp dport @unserved{version}"
            entry.append(text.rule(match, "goto refuse_unserved", reason))
        end = text.rule("", "goto nowhere", "refused, never direct")
        refused += _walk("refuse_unserved", intent, [], [end])
    rules = [
        text.rule("meta l4proto tcp", "reject with tcp reset", "refused at once instead of a timeout"),
        text.rule("", "reject with icmpx admin-prohibited", "refused at once: services are TCP only"),
    ]
    left_over = text.chain("left_over", "filter hook output priority filter", entry)
    return [left_over, *refused, text.chain("nowhere", "", rules)]


def _refuse_ipv6(intent: Intent) -> list[str]:
    """What would be captured over IPv6 and has to be refused there: the same exceptions hold."""
    never = _never(intent) if intent.all_families else []
    end = text.rule("", "goto nowhere", "capture.ipv6: refuse")
    return _walk("refuse_ipv6", intent, never, [end])
