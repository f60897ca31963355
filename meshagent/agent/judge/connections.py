"""Open connections that meet a rule of the plan, and what happens to each. Pure.

Rules match only the first packet of a connection, so the answer always begins with "stays"; what differs is what a
new one like it would meet.
"""

from collections.abc import Collection, Iterable

from meshagent.agent.capture.values import HostFacts, Intent
from meshagent.agent.judge.values import OpenConnection, Session
from meshagent.model.address import MeshAddress


def concerned(
    intent: Intent,
    facts: HostFacts,
    found: Iterable[OpenConnection],
    session: Session | None,
    listening: Collection[int] = (),
) -> Iterable[tuple[OpenConnection, str]]:
    """(connection, what happens), those with a sentence to say; the session that types comes first. ``listening``:
    ports of this host on which somebody listens, so that who called whom is known."""
    effects = [(each, effect) for each in found if (effect := _effect(intent, facts, each, session, listening))]
    return sorted(effects, key=lambda pair: not _is_session(pair[0], session))


def _effect(
    intent: Intent, facts: HostFacts, each: OpenConnection, session: Session | None, listening: Collection[int]
) -> str:
    if _is_session(each, session):
        return "your session: stays, whatever happens to rules"
    if each.local_port in {spared.port for spared in intent.spared} and each.remote_ip not in facts.own_addresses:
        return "stays; its port is never captured"
    if each.remote_ip in facts.own_addresses or each.remote_ip.is_loopback:
        return ""
    if each.local_port in listening or each.local_port in (*intent.counted_ports, *intent.strict_ports):
        return _inbound(intent, each)
    return _outbound(intent, each)


def _inbound(intent: Intent, each: OpenConnection) -> str:
    if each.local_port in intent.counted_ports:
        return "stays; a new one in plain text is counted and let in"
    if each.local_port in intent.strict_ports:
        return "stays; a new one in plain text would be refused"
    direct = any(each.local_port in ports for ports in intent.inbound_direct_ports)
    if each.local_ip.version in intent.inbound_families and not direct:
        return "stays on the way it has; a new one comes in through the proxy"
    return ""


def _outbound(intent: Intent, each: OpenConnection) -> str:
    address = MeshAddress(each.remote_ip, each.remote_port)
    excluded = any(each.remote_port in ports for ports in intent.exclude.ports)
    if excluded or any(each.remote_ip in network for network in intent.exclude.cidrs):
        return ""
    if address in intent.virtual:
        return "stays; goes through the mesh already"
    if address in intent.claimed:
        return "stays on the way it has; a new one goes through the mesh"
    direct = any(each.remote_port in ports for ports in intent.direct_ports)
    if each.remote_ip.version not in intent.all_families or direct:
        return ""
    if any(each.remote_ip in network for network in intent.direct):
        return ""
    return "stays on the way it has; a new one goes through the proxy"


def _is_session(each: OpenConnection, session: Session | None) -> bool:
    if session is None or not session.port:
        return False
    return (each.local_port, each.remote_ip, each.remote_port) == (session.port, session.peer, session.peer_port)
