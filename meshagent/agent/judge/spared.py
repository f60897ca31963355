"""What is never captured here besides ports: addresses and kinds of traffic, each with its reason. Pure.

The same list that ``capture.claims`` keeps the mesh from claiming, told in advance.
"""

from collections.abc import Iterable

from meshagent.agent.capture.values import HostFacts
from meshagent.agent.judge.values import Session
from meshagent.model.address import IPAddress


def never_captured(facts: HostFacts, session: Session | None) -> Iterable[tuple[str, str]]:
    """(what, why)."""
    if session is not None and session.peer is not None:
        yield f"{session.peer} port {session.peer_port}", f"{session}: packets of open connections never match"
    yield from _each(facts.hub_addresses, "the hub must stay reachable without the mesh")
    yield from _each(facts.gateways, "this host's gateway")
    yield from _each(facts.nameservers, "this host's resolver (only DNS questions to it go to the agent)")
    yield from _each(facts.own_addresses, "this host's own address: always direct")
    yield "127.0.0.0/8 and ::1", "loopback never leaves the host"
    yield "169.254.0.0/16, fe80::/10 and fd00:ec2::254", "link-local addresses and cloud metadata"
    yield "UDP, so DHCP and NTP", "only TCP is captured, and DNS questions to this host's resolvers"
    yield "forwarded traffic", "of containers, virtual machines, a router: only this host's own programs are captured"


def _each(addresses: Iterable[IPAddress], why: str) -> Iterable[tuple[str, str]]:
    for address in sorted(set(addresses), key=lambda ip: (ip.version, ip)):
        yield str(address), why
