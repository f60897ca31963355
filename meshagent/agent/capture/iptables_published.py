"""The legacy rules for plain text on a declared port that something else turns to another machine: docker. Pure.

The same meaning as chains_published.py. Once an address has been turned to another, no rule of iptables can ask whether
it was one of this host. So who dials a declared port at an own address goes on a list of xt_recent where the packet
comes in (table mangle, before anybody's DNAT), and is taken off it again where that packet is received, or forwarded:
there it is known by that. Of the last 100 callers of a port none is forgotten in these microseconds.
"""

from meshagent.agent.capture.iptables_text import SYN, Chains, jump, recent, remember, rule
from meshagent.agent.capture.values import Intent


def noted(intent: Intent, version: int) -> list[str]:
    """For table mangle's PREROUTING."""
    reason = "a declared port of this host is dialled from outside, whoever turns it elsewhere"
    matches = ((port, f"! -i lo {_syn(port)} -m addrtype --dst-type LOCAL") for port in _ports(intent))
    return [remember("dialled", port, match, version, reason) for port, match in matches]


def received(intent: Intent, version: int) -> list[str]:
    """For table filter's INPUT; after a REDIRECT only conntrack knows the port."""
    turned = version in intent.arriving_families
    matches = ((p, f"{SYN} -m conntrack --ctorigdstport {p}" if turned else _syn(p)) for p in _ports(intent))
    return [_taken_off(port, match, version, "", "received by this host itself") for port, match in matches]


def judged(intent: Intent, version: int) -> Chains:
    """For table filter's FORWARD; counted in the lists of callers that INPUT has. Empty where no port is declared."""
    found: Chains = {"forwarded": []} if _ports(intent) else {}
    for name, ports in (("counted", intent.counted_ports), ("refused", intent.strict_ports)):
        if ports:
            found["forwarded"] += [_elsewhere(port, version, f"forwarded_{name}") for port in ports]
    if intent.counted_ports:
        reason = "plain text on a declared port that is published from elsewhere: counted, left alone"
        found["forwarded_counted"] = [_counted("callers", port, version, reason) for port in intent.counted_ports]
    if intent.strict_ports:
        reason = "plain text on a published port that requires mutual TLS"
        found["forwarded_refused"] = [
            *(_counted("refused", port, version, reason) for port in intent.strict_ports),
            rule(
                "-p tcp",
                "-j REJECT --reject-with tcp-reset",
                "mutual TLS is required: new plain connections are refused",
            ),
        ]
    return found


def _ports(intent: Intent) -> list[int]:
    return sorted((*intent.counted_ports, *intent.strict_ports))


def _syn(port: int) -> str:
    return SYN.replace("--tcp-flags", f"--dport {port} --tcp-flags")


def _elsewhere(port: int, version: int, target: str) -> str:
    match = f"{SYN} -m conntrack --ctstate DNAT --ctorigdstport {port} --ctdir ORIGINAL"
    return _taken_off(port, match, version, jump(target), "dialled at this host, turned elsewhere by others")


def _taken_off(port: int, match: str, version: int, target: str, reason: str) -> str:
    return rule(f"{match} -m recent --remove {recent('dialled', port, version)}", target, reason)


def _counted(kind: str, port: int, version: int, reason: str) -> str:
    return remember(kind, port, f"-p tcp -m conntrack --ctorigdstport {port}", version, reason)
