"""The chains for plain text on a declared port that something else turns to another machine, as docker does. Pure.

What docker publishes is dialled at an address of this host and then forwarded, so it never meets the input chains; and
where it is forwarded, nothing tells any more whose address was dialled, but conntrack. So the addresses are noted where
the packet comes in, before anybody's DNAT, and asked for where it is forwarded. What was dialled at other addresses is
somebody else's and isn't touched; nor is what the proxy or the host itself sends to a container: that is never
forwarded. Not refused where it comes in: the kernel has no rejects there before 5.9.
"""

from collections.abc import Iterator

from meshagent.agent.capture import text
from meshagent.agent.capture.chains import FAMILY, SYN
from meshagent.agent.capture.chains_inbound import count
from meshagent.agent.capture.values import Intent

_PORT = "ct original proto-dst"


def published(intent: Intent) -> list[str]:
    """Only where ports are declared. Behind everybody's own rules for what is forwarded, as for what comes in."""
    noted, judged = list(_noted(intent)), list(_judged(intent))
    blocks = [
        text.chain("dialled", "filter hook prerouting priority mangle", noted),
        text.chain("forwarded", "filter hook forward priority 10", judged),
    ]
    if intent.counted_ports:
        blocks.append(text.chain("forwarded_plain_text", "", count("callers", _PORT)))
    if intent.strict_ports:
        refuse = text.rule("", "reject with tcp reset", "mutual TLS is required: new plain connections are refused")
        blocks.append(text.chain("refuse_forwarded", "", [*count("refused", _PORT), refuse]))
    return blocks


def _noted(intent: Intent) -> Iterator[str]:
    for name in ("counted_ports", "strict_ports"):
        if getattr(intent, name):
            for version in (4, 6):
                yield text.rule(
                    f"iif != lo meta nfproto ipv{version} tcp dport @{name} {SYN} fib daddr type local",
                    f"update @dialled{version} {{ {FAMILY[version]} daddr }}",
                    "a declared port of this host is dialled from outside, whoever turns it elsewhere",
                )


def _judged(intent: Intent) -> Iterator[str]:
    for name, target, reason in (
        ("counted_ports", "forwarded_plain_text", "plain text on a declared port that is published from elsewhere"),
        ("strict_ports", "refuse_forwarded", "plain text on a published port that requires mutual TLS"),
    ):
        if getattr(intent, name):
            for version in (4, 6):
                family = FAMILY[version]
                dialled = f"{_PORT} @{name} ct original {family} daddr @dialled{version}"
                match = f"meta nfproto ipv{version} ct status dnat ct direction original {SYN} {dialled}"
                yield text.rule(match, f"goto {target}", reason)
