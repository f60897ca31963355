"""The chains for what comes in: who calls in plain text, and what passes the proxy on its way to a process. Pure.

Peers of ours need none of this: they come by HBONE and reach the application over lo. Redirected ports are for peers
that speak mutual TLS on the service's own port; from a SYN the kernel can't tell them from callers in plain text, so
there the proxy does, and the kernel counts or refuses only what doesn't get to it.
"""

from meshagent.agent.capture import text
from meshagent.agent.capture.chains import FAMILY, HUNG, SYN
from meshagent.agent.capture.values import Intent
from meshagent.config.settings import RedirectMode
from meshagent.model.ports import INBOUND

LOOPBACK = {4: "127.0.0.1", 6: "[::1]"}


def inbound(intent: Intent) -> list[str]:
    """Mesh peers come by HBONE and reach the application over lo; what comes from outside on these ports is plain."""
    entry, port = _handed_over(intent), _dialled(intent)
    for name, target, reason in (
        ("counted_ports", "plain_text", "plain text on a declared port: counted, left alone"),
        ("strict_ports", "refuse_plain_text", "plain text on a port that requires mutual TLS"),
    ):
        if getattr(intent, name):
            dialled = f"{port} @{name} {SYN}" if port == "tcp dport" else f"{SYN} {port} @{name}"  # nft wants it so
            match = f"iif != lo {dialled} fib daddr type local"
            entry.append(text.rule(match, f"goto {target}", reason))
    blocks = [text.chain("inbound", "filter hook input priority 10", entry)]
    if intent.counted_ports:
        blocks.append(text.chain("plain_text", "", count("callers", port)))
    if intent.strict_ports:
        refuse = text.rule("", "reject with tcp reset", "mutual TLS is required: new plain connections are refused")
        blocks.append(text.chain("refuse_plain_text", "", [*count("refused", port), refuse]))
    return blocks


def _handed_over(intent: Intent) -> list[str]:
    """Redirected ports, where the packet is the proxy's by now: with TPROXY its socket is the proxy's transparent one
    (a dead proxy has none), with REDIRECT it is on the way to the proxy's port."""
    redirect = intent.inbound_mode is RedirectMode.REDIRECT
    sign, port = (f"tcp dport {INBOUND} ", "ct original proto-dst") if redirect else ("", "tcp dport")
    owner = "" if redirect else " socket transparent 1"
    return [
        text.rule(
            f"iif != lo meta nfproto ipv{version} {SYN} {sign}{port} @redirected{version}{owner}",
            "return",
            "the proxy has it, which tells mutual TLS from plain text",
        )
        for version in redirected_ports(intent)
    ]


def redirected_ports(intent: Intent) -> dict[int, tuple[int, ...]]:
    """IP version -> ports that are redirected because the mesh says so."""
    found = {
        version: tuple(each.port for each in intent.redirected if version in each.families)
        for version in intent.arriving_families
    }
    return {version: ports for version, ports in found.items() if ports}


def count(name: str, port: str) -> list[str]:
    """Into the sets of callers; ``port`` is what tells which one was dialled."""
    tcp = "" if port == "tcp dport" else "meta l4proto tcp"  # which ports conntrack's are
    return [
        text.rule(tcp, f"update @{name}4 {{ ip saddr . {port} counter }}", "who calls in plain text"),
        text.rule(tcp, f"update @{name}6 {{ ip6 saddr . {port} counter }}", "who calls in plain text"),
    ]


def _dialled(intent: Intent) -> str:
    """The port that the caller wanted; after a REDIRECT only conntrack knows."""
    redirected = intent.arriving_families and intent.inbound_mode is RedirectMode.REDIRECT
    return "ct original proto-dst" if redirected else "tcp dport"


def arriving(intent: Intent) -> list[str]:
    """Behind everybody's DNAT (priority dstnat + 1): a published port of a container is not local any more there, so
    it is left alone. ``socket`` finds who would get the packet: nobody listening means nothing to redirect."""
    if not intent.arriving_families:
        return []
    redirect = intent.inbound_mode is RedirectMode.REDIRECT
    hook = "nat hook prerouting priority -99" if redirect else "filter hook prerouting priority -99"
    entry = [
        text.rule(
            f"iif != lo meta nfproto ipv{version} {SYN} {_chosen(intent, version)}fib daddr type local",
            "goto arriving_new",
            "a new connection from outside to an address of this host",
        )
        for version in intent.arriving_families
    ]
    gate = text.rule(
        "socket transparent 0", "meta l4proto vmap @inbound_gate", "somebody listens; flips with the proxy"
    )
    return [
        text.chain("arriving", hook, entry),
        text.chain("arriving_new", "", [*_never_arriving(intent), gate]),
        text.chain("to_inbound", "", _to_inbound(intent, redirect)),
        text.chain(
            "around_inbound", "", [text.rule("", "return", "around the proxy: it is dead, the process is here")]
        ),
    ]


def _chosen(intent: Intent, version: int) -> str:
    """Everything that was asked for in agent.yaml, else the ports that the mesh names."""
    return "" if version in intent.inbound_families else f"tcp dport @redirected{version} "


def _never_arriving(intent: Intent) -> list[str]:
    exclude = intent.exclude
    ports = ", ".join(map(str, text.merged(intent.inbound_direct_ports)))
    matches = [
        (f"tcp dport {{ {ports} }}", "never redirected: sshd, this session, the mesh's own ports, excluded ones"),
        *(
            (f"{FAMILY[version]} saddr {{ {', '.join(found)} }}", "networks excluded in agent.yaml")
            for version in intent.arriving_families
            if (found := text.outermost(exclude.cidrs, version))
        ),
    ]
    if exclude.interfaces:
        names = ", ".join(f'"{name}"' for name in exclude.interfaces)
        matches.append((f"iifname {{ {names} }}", "interfaces excluded in agent.yaml"))
    return [text.rule(match, "return", why) for match, why in matches]


def _to_inbound(intent: Intent, redirect: bool) -> list[str]:
    """TPROXY without a listener goes on to the next rule: open unless there is a refusal behind it."""
    if redirect:
        return to_proxy(INBOUND)
    rules = [text.rule("", "meta l4proto vmap @hung_gate", HUNG)]
    rules += [
        text.rule(
            f"meta nfproto ipv{version} meta l4proto tcp",
            f"tproxy {FAMILY[version]} to {LOOPBACK[version]}:{INBOUND} accept",
            "to the proxy",
        )
        for version in intent.arriving_families
    ]
    if not intent.fail_open:
        rules.append(text.rule("", "reject with tcp reset", "there is no proxy, and the failure policy is closed"))
    return rules


def to_proxy(port: int) -> list[str]:
    """What comes from outside, before anything is changed in it: an answer to what was redirected would go out with the
    proxy's port where bridges call netfilter (seen, kernel 6.18), and nobody would know it as theirs."""
    hung = text.rule("", "meta l4proto vmap @hung_gate", HUNG)
    return [hung, text.rule("meta l4proto tcp", f"redirect to :{port}", "to the proxy")]
