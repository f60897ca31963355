"""The chains for containers behind the bridges that agent.yaml names. Pure.

What they send is forwarded, so it never meets the output chains. Only what goes to addresses of the mesh is redirected,
to the address of the bridge; everything else is forwarded as it always was. Not by TPROXY: where bridges call netfilter
(br_netfilter; docker loads it), the socket that TPROXY chose is forgotten on the packet's way up (seen, kernel 6.18).
"""

from collections.abc import Iterator

from meshagent.agent.capture import text
from meshagent.agent.capture.chains import FAMILY, NOT_SYN
from meshagent.agent.capture.chains_inbound import to_proxy
from meshagent.agent.capture.values import Intent
from meshagent.model.address import VIRTUAL4, VIRTUAL6
from meshagent.model.ports import BRIDGED

_VIRTUAL = {4: VIRTUAL4, 6: VIRTUAL6}


def bridged(intent: Intent) -> list[str]:
    if not intent.bridged_families:
        return []
    return [
        text.chain("bridged", "nat hook prerouting priority -101", list(_entry(intent))),
        text.chain("bridged_mesh", "", _mesh(intent)),
        text.chain("bridged_to_proxy", "", to_proxy(BRIDGED)),
        text.chain("bridged_around", "", [text.rule("", "return", "around the proxy: it is dead")]),
        text.chain("bridged_left_over", "filter hook prerouting priority -90", list(_left_over(intent))),
    ]


def _from(intent: Intent) -> str:
    names = ", ".join(f'"{name}"' for name in intent.bridges)
    return f"iifname {{ {names} }}"


def _entry(intent: Intent) -> Iterator[str]:
    for version in intent.bridged_families:
        key = f"{_from(intent)} {FAMILY[version]} daddr . tcp dport"
        yield text.rule(f"{key} @virtual{version}", "goto bridged_mesh", "a container calls a virtual address")
        yield text.rule(f"{key} @claimed{version}", "goto bridged_mesh", "a container calls a literal address")


def _mesh(intent: Intent) -> list[str]:
    ports, cidrs = intent.exclude.ports, intent.exclude.cidrs
    matches = [
        (NOT_SYN, "only new connections: open ones stay what they are"),
        ("fib daddr type local", "own addresses are direct, before any claim"),
    ]
    if ports:
        matches.append((f"tcp dport {{ {', '.join(map(str, text.merged(ports)))} }}", "ports excluded in agent.yaml"))
    for version in intent.bridged_families:
        if found := text.outermost(cidrs, version):
            matches.append((f"{FAMILY[version]} daddr {{ {', '.join(found)} }}", "networks excluded in agent.yaml"))
    gates = [
        text.rule(
            f"{FAMILY[version]} daddr . tcp dport @claimed{version}",
            "meta l4proto vmap @bridged_gate",
            "flips when the proxy is dead",
        )
        for version in intent.bridged_families
    ]
    virtual = text.rule("", "goto bridged_to_proxy", "virtual addresses have no direct way")
    return [*(text.rule(match, "return", why) for match, why in matches), *gates, virtual]


def _left_over(intent: Intent) -> Iterator[str]:
    """Behind NAT: what still has a virtual address was not captured. Forwarded it would vanish without an answer."""
    reason = "a container's packet to a virtual address that was not captured"
    for version in intent.bridged_families:
        match = f"{_from(intent)} {FAMILY[version]} daddr {_VIRTUAL[version]}"
        yield text.rule(f"{match} meta l4proto tcp", "reject with tcp reset", reason)
        yield text.rule(match, "reject with icmpx admin-prohibited", reason)
