"""What a posture would do here, before anything is done: reads the machine and the files, changes nothing.

Reading is here, judging in ``agent/judge``. The answer is also what ``enroll``, ``posture`` and ``capture on`` ask
before they act: ``Plan.risks`` are refused unless a person accepts them by name.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from meshagent.agent import ports
from meshagent.agent.asked import units
from meshagent.agent.capture.backend import lost, render
from meshagent.agent.capture.intent import HostFacts, Intent, Wishes, decide
from meshagent.agent.capture.suspension import suspended_since
from meshagent.agent.capture.usable import usable_backends, usable_zones
from meshagent.agent.firewallwatch import read_firewalls
from meshagent.agent.footprint import PROXY_USER
from meshagent.agent.here import resolve_hubs
from meshagent.agent.identity.keystore import Keystore
from meshagent.agent.judge.connections import concerned
from meshagent.agent.judge.firewalls import needed_ports
from meshagent.agent.judge.redirected import redirected
from meshagent.agent.judge.risks import Risk, login_risk
from meshagent.agent.judge.spared import never_captured
from meshagent.agent.judge.sysctls import judge_sysctls
from meshagent.agent.judge.trust import Trusting, explain, read_rules, trust_risk
from meshagent.agent.judge.values import OpenConnection, Session
from meshagent.agent.names.resolver import ResolverFacts, read_resolv_conf
from meshagent.agent.names.resolver import decide as decide_dns
from meshagent.config.load import read_agent_config
from meshagent.config.services import load_services
from meshagent.config.settings import AgentConfig, Backend, DnsMode
from meshagent.machine import access_files, cgroups, login, netlink, sockets, sysctls, users
from meshagent.machine import facts as machine_facts
from meshagent.machine.sockets import Connection, Listener
from meshagent.model.address import HostPort, IPAddress, MeshAddress, parse_ip
from meshagent.model.paths import Paths
from meshagent.model.policy import HostPolicy, RedirectReason
from meshagent.model.ports import HBONE
from meshagent.model.posture import PlaintextMode, Posture
from meshagent.model.service import DeclaredService, ServiceProtocol

#: CAP_NET_ADMIN (capabilities(7)): with it the proxy speaks from its callers' addresses.
_NET_ADMIN = 12

#: Shown for a proxy user that enrolling has yet to create.
_FUTURE_UID = 999


@dataclass(frozen=True, slots=True)
class Plan:
    """``answer`` has the contract's shape (docs/cli.md)."""

    answer: dict[str, Any]
    risks: tuple[Risk, ...]


@dataclass(frozen=True, slots=True)
class _Host:
    """One look at the machine."""

    facts: HostFacts
    listening: tuple[Listener, ...]
    connections: tuple[Connection, ...]
    session: Session | None
    new_user: bool


def make_plan(paths: Paths, posture: str | None, live: Mapping[str, Any], hubs: Iterable[HostPort] = ()) -> Plan:
    """``live`` is the daemon's ``plan.facts``, empty where none runs; ``hubs`` are those of an enrolment to come.

    Raises ``MeshagentError`` (``ConfigError`` for files).
    """
    config = read_agent_config(paths.config)
    wanted = Posture(posture) if posture else config.posture
    services = load_services(paths.services_dir).services
    host = _look(_hub_addresses(paths, config, live, hubs), units(config.capture))
    intent = decide(_wishes(config, wanted, services, live, capture_dns=_captures_dns(config, wanted)), host.facts)
    trusting = _trusting(host.listening)
    risks = (*login_risk(intent, host.facts, host.session), *trust_risk(_declared(trusting, services, wanted)))
    answer = {
        "posture": wanted.value,
        "rules": render(intent).table,
        "captured": list(_captured(intent, services)),
        "redirected": [{"what": what, "reason": why} for what, why in redirected(intent)],
        "spared": [{"port": s.port, "reason": s.reason} for s in intent.spared],
        "direct": [{"what": what, "reason": why} for what, why in never_captured(host.facts, host.session)],
        "connections": list(_connections(intent, host)),
        "risks": [{"risk": risk.name, "text": risk.text, "mend": risk.mend} for risk in risks],
        "firewalls": [asdict(judged) for judged in read_firewalls(needed_ports(intent))],
        "address_trust": list(_address_trust(trusting, services)),
        "sysctls": [asdict(judged) for judged in judge_sysctls(sysctls.read(), len(host.connections))],
        "warnings": [
            *_switched_off(paths),
            *lost(intent, host.facts),
            *intent.waiting,
            *_warnings(intent, services, host.listening),
            *_taken(host.facts.proxy_uid, live),
        ],
        "changes": list(_changes(paths, intent, host.new_user, running=bool(live))),
    }
    return Plan(answer, risks)


def service_risks(paths: Paths, name: str, port: int) -> tuple[Risk, ...]:
    """What declaring a service that listens on ``port`` would risk here, by access rules that go by address."""
    service = DeclaredService(name=name, port=port, target_port=port)
    found = [each for each in _trusting(sockets.listeners()) if each.port == port]
    return tuple(trust_risk(_declared(found, (service,), read_agent_config(paths.config).posture)))


# --- reading ---------------------------------------------------------------------------------------------------------


def _look(hubs: frozenset[IPAddress], wanted_units: frozenset[str]) -> _Host:
    here, (nft, iptables) = machine_facts.gather(), usable_backends()
    own = frozenset(address.ip for address in netlink.addresses())
    listening, connections = sockets.listeners(), sockets.connections()
    account = users.find_user(PROXY_USER)
    ssh = login.remote_login(own)
    facts = HostFacts(
        proxy_uid=account.uid if account else _FUTURE_UID,
        own_addresses=own,
        gateways=frozenset(netlink.gateways()),
        nameservers=here.nameservers,
        hub_addresses=hubs,
        sshd_ports=sockets.login_ports(listening),
        session_ports=login.session_ports(own) | ({ssh.server_port} if ssh and ssh.server_port else frozenset()),
        ipv6_usable=here.ipv6,
        nft_usable=nft,
        iptables_usable=iptables,
        zones_usable=usable_zones(nft=nft),
        cgroups=cgroups.find(wanted_units) if wanted_units else (),
    )
    return _Host(facts, listening, connections, _session(ssh, listening, connections), account is None)


def _session(
    ssh: login.RemoteLogin | None, listening: tuple[Listener, ...], connections: tuple[Connection, ...]
) -> Session | None:
    """The session that types: as SSH says it, else the connection that an ancestor of ours accepted (telnet, a web
    terminal), else only the fact."""
    if ssh is not None and ssh.server_port:
        return Session(ssh.server_port, ssh.peer, ssh.peer_port, "sshd")
    chain, ports = set(login.ancestors(os.getpid())) - {1}, {listener.port for listener in listening}
    for each in connections:
        server = next((owner for owner in each.owners if owner.pid in chain), None)
        if server is not None and each.local_port in ports and not each.remote_ip.is_loopback:
            return Session(each.local_port, each.remote_ip, each.remote_port, server.name)
    return Session() if ssh is not None else None


def _trusting(listening: tuple[Listener, ...]) -> tuple[Trusting, ...]:
    keeps = machine_facts.may_have(_NET_ADMIN)
    return tuple(
        Trusting(each.program, each.port, keeps and not each.loopback_only, read_rules(each.program, each.files))
        for each in access_files.read(listening)
    )


def _hub_addresses(
    paths: Paths, config: AgentConfig, live: Mapping[str, Any], hubs: Iterable[HostPort]
) -> frozenset[IPAddress]:
    known = frozenset(ip for text in live.get("hub", ()) if (ip := parse_ip(text)))
    if known:
        return known
    keystore = Keystore(paths.state)
    enrolled = keystore.load_enrolment().hub_addresses if keystore.enrolled else ()
    return resolve_hubs(config.hub or enrolled or tuple(hubs))


def _captures_dns(config: AgentConfig, posture: Posture) -> bool:
    return decide_dns(config.dns.mode, posture, ResolverFacts(read_resolv_conf())).mode is DnsMode.CAPTURE


def _wishes(
    config: AgentConfig,
    posture: Posture,
    services: tuple[DeclaredService, ...],
    live: Mapping[str, Any],
    *,
    capture_dns: bool,
) -> Wishes:
    mesh = frozenset(MeshAddress(ip, port) for text, port in live.get("mesh", ()) if (ip := parse_ip(text)))
    policy = {int(port): PlaintextMode(mode) for port, mode in live.get("policy", {}).items()}
    redirect = {int(port): RedirectReason(reason) for port, reason in live.get("redirect", {}).items()}
    return Wishes(
        posture=posture,
        config=replace(config.capture),
        services=services,
        policy=HostPolicy(policy, redirect),
        mesh=mesh,
        capture_dns=capture_dns,
    )


# --- telling ---------------------------------------------------------------------------------------------------------


def _captured(intent: Intent, services: tuple[DeclaredService, ...]) -> Iterable[dict[str, Any]]:
    names = {service.target_port: service.name for service in services}
    redirected = {each.port for each in intent.redirected}
    for each in intent.redirected:
        plain = "plain text goes on to the process" if each.plain else "everything else is closed"
        reason = f"{names[each.port]}: redirected to the proxy, {each.reason.text}; {plain}"
        yield {"port": each.port, "reason": reason}
    for port in sorted({*intent.counted_ports} - redirected):
        yield {"port": port, "reason": f"{names[port]}: plain-text callers are counted and let in"}
    for port in sorted({*intent.strict_ports} - redirected):
        yield {"port": port, "reason": f"{names[port]}: plain-text callers are refused"}


def _declared(
    trusting: Iterable[Trusting], services: tuple[DeclaredService, ...], posture: Posture
) -> Iterable[tuple[str, Trusting]]:
    """What mesh peers would reach; postures below permissive let nobody in."""
    if posture.serves_inbound:
        names = {service.target_port: service.name for service in services}
        yield from ((names[each.port], each) for each in trusting if each.port in names)


def _address_trust(trusting: Iterable[Trusting], services: tuple[DeclaredService, ...]) -> Iterable[dict[str, Any]]:
    names = {service.target_port: service.name for service in services}
    for each in trusting:
        for rule in each.rules:
            yield {
                "program": each.program,
                "port": each.port,
                "service": names.get(each.port, ""),
                "keeps": each.keeps,
                "file": rule.file,
                "line": rule.line,
                "rule": rule.rule,
                "text": explain(each, rule),
            }


def _connections(intent: Intent, host: _Host) -> Iterable[dict[str, Any]]:
    ports = {listener.port for listener in host.listening}
    for each, effect in concerned(intent, host.facts, map(_open, host.connections), host.session, ports):
        yield {
            "local": f"{each.local_ip} port {each.local_port}",
            "remote": f"{each.remote_ip} port {each.remote_port}",
            "process": each.program,
            "pid": each.pid,
            "effect": effect,
        }


def _open(found: Connection) -> OpenConnection:
    """The youngest owner is the program: an sshd session's socket is also its listener's child's."""
    owner = found.owners[-1] if found.owners else None
    return OpenConnection(
        found.local_ip,
        found.local_port,
        found.remote_ip,
        found.remote_port,
        owner.name if owner else "",
        owner.pid if owner else 0,
    )


def _warnings(intent: Intent, services: tuple[DeclaredService, ...], listening: tuple[Listener, ...]) -> Iterable[str]:
    open_ports = {listener.port for listener in listening}
    for service in services:
        if service.target_port not in open_ports:
            yield f"{service.name}: nothing listens on port {service.target_port}"
        owners = {o.name for x in listening if x.port == service.target_port for o in x.owners}
        only_loopback = all(x.ip.is_loopback for x in listening if x.port == service.target_port)
        if owners and only_loopback:
            yield f"{service.name}: listens on loopback only: it sees mesh callers as this host, not by their address"
        if any(each.plain and each.port == service.target_port for each in intent.redirected):
            yield from _waits_for_first_byte(service)
    for claim in intent.refused:
        yield f"claim on {claim.address.ip} port {claim.address.port} is refused: {claim.reason}"


def _waits_for_first_byte(service: DeclaredService) -> Iterable[str]:
    """Plain text and TLS on one port can't be told apart before a client has spoken (3 s: hub/snapshot/doors.py)."""
    whose = {ServiceProtocol.MYSQL: "its server speaks first", ServiceProtocol.TCP: "if its server speaks first"}
    if why := whose.get(service.protocol):
        wait = f"{why}, plain-text callers of port {service.target_port} wait 3 s for each new connection"
        yield f"{service.name}: {wait} (the proxy waits for their first bytes); PeerAuthentication STRICT refuses them"


def _switched_off(paths: Paths) -> Iterable[str]:
    since = suspended_since(paths.suspended)
    if since is not None:
        when = since.strftime("%Y-%m-%d %H:%M")
        yield f"capture is switched off since {when} UTC; what stands here begins with: meshagent capture on"


def _taken(proxy_uid: int, live: Mapping[str, Any]) -> Iterable[str]:
    """Ports of the mesh that somebody else holds; a running daemon knows which sockets are its own."""
    found = live["taken"] if "taken" in live else (each.text for each in ports.look(frozenset({proxy_uid})))
    for text in found:
        yield f"{text}; the mesh needs it: stop that program or move it to another port"


def _changes(paths: Paths, intent: Intent, new_user: bool, *, running: bool) -> Iterable[str]:
    for directory in (paths.etc, paths.state, paths.run):
        if not directory.exists():
            yield f"creates {directory}"
    if not paths.enrolment.exists():
        yield f"writes keys, certificate and what enrolling made to {paths.state}, readable by root only"
    if new_user:
        yield f"creates the system user {PROXY_USER}, which the proxy runs as"
    nft = intent.backend is Backend.NFT
    if running and render(intent).table:
        once = "table inet meshagent by the rules below, in one transaction"
        yield f"replaces {once if nft else 'the chains MESHAGENT_* of legacy iptables by the rules below'}"
    elif render(intent).table:
        new = "table inet meshagent (the rules below) and table inet meshagent_anchor"
        yield f"loads {new if nft else 'the chains MESHAGENT_* of legacy iptables (the rules below)'}"
        yield "adds routes for virtual addresses, and ip rules for marks of its own with routing table 28001"
        yield f"opens port {HBONE} for mesh peers (mutual TLS)"
