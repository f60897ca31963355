"""What a posture would do here, before anything is done: reads the machine and the files, changes nothing."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from meshagent.agent.capture.intent import HostFacts, Intent, Wishes, decide
from meshagent.agent.capture.nft import render
from meshagent.agent.capture.suspension import suspended_since
from meshagent.agent.footprint import PROXY_USER
from meshagent.agent.names.resolver import ResolverFacts, read_resolv_conf
from meshagent.agent.names.resolver import decide as decide_dns
from meshagent.config.load import read_agent_config
from meshagent.config.services import load_services
from meshagent.config.settings import AgentConfig, DnsMode
from meshagent.machine import facts as machine_facts
from meshagent.machine import netlink, sockets, users
from meshagent.machine.login import remote_login
from meshagent.machine.sockets import Connection, Listener
from meshagent.model.address import MeshAddress, parse_ip
from meshagent.model.paths import Paths
from meshagent.model.policy import HostPolicy
from meshagent.model.ports import HBONE
from meshagent.model.posture import PlaintextMode, Posture
from meshagent.model.service import DeclaredService

#: Shown for a proxy user that enrolling has yet to create.
_FUTURE_UID = 999

_MOST_CONNECTIONS = 50


def make_plan(paths: Paths, posture: str | None, live: Mapping[str, Any]) -> dict[str, Any]:
    """The contract's shape (docs/cli.md). ``live`` is the daemon's ``plan.facts``, empty where none runs.

    Raises ``MeshagentError`` (``ConfigError`` for files).
    """
    config = read_agent_config(paths.config)
    wanted = Posture(posture) if posture else config.posture
    services = load_services(paths.services_dir).services
    listening = sockets.listeners()
    account = users.find_user(PROXY_USER)
    facts = _facts(account.uid if account else _FUTURE_UID, listening)
    intent = decide(_wishes(config, wanted, services, live, capture_dns=_captures_dns(config, wanted)), facts)
    return {
        "posture": wanted.value,
        "rules": render(intent).table,
        "captured": list(_captured(intent, services)),
        "spared": [{"port": s.port, "reason": s.reason} for s in intent.spared],
        "connections": list(_connections(intent, sockets.connections())),
        "warnings": [*_switched_off(paths), *_warnings(intent, services, listening)],
        "changes": list(_changes(paths, intent, account is None, running=bool(live))),
    }


def _facts(uid: int, listening: tuple[Listener, ...]) -> HostFacts:
    here = machine_facts.gather()
    own = frozenset(address.ip for address in netlink.addresses())
    session = remote_login(own)
    return HostFacts(
        proxy_uid=uid,
        own_addresses=own,
        gateways=frozenset(netlink.gateways()),
        nameservers=here.nameservers,
        sshd_ports=sockets.login_ports(listening),
        session_ports=frozenset({session.server_port} if session and session.server_port else ()),
        ipv6_usable=here.ipv6,
        nft_usable=here.nft,
    )


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
    return Wishes(
        posture=posture,
        config=replace(config.capture),
        services=services,
        policy=HostPolicy(policy),
        mesh=mesh,
        capture_dns=capture_dns,
    )


def _captured(intent: Intent, services: tuple[DeclaredService, ...]) -> Iterable[dict[str, Any]]:
    names = {service.target_port: service.name for service in services}
    for port in intent.counted_ports:
        yield {"port": port, "reason": f"{names[port]}: plain-text callers are counted and let in"}
    for port in intent.strict_ports:
        yield {"port": port, "reason": f"{names[port]}: plain-text callers are refused"}


def _connections(intent: Intent, found: Iterable[Connection]) -> Iterable[dict[str, Any]]:
    """Open connections that meet a rule of ours; none of them is touched."""
    mesh = {(address.ip, address.port) for address in (*intent.virtual, *intent.claimed)}
    ports = {*intent.counted_ports, *intent.strict_ports}
    concerned = [c for c in found if (c.remote_ip, c.remote_port) in mesh or c.local_port in ports]
    for connection in concerned[:_MOST_CONNECTIONS]:
        yield {
            "local": f"{connection.local_ip} port {connection.local_port}",
            "remote": f"{connection.remote_ip} port {connection.remote_port}",
            "process": connection.owners[0].name if connection.owners else "",
            "effect": "stays as it is; only new connections are captured",
        }


def _warnings(intent: Intent, services: tuple[DeclaredService, ...], listening: tuple[Listener, ...]) -> Iterable[str]:
    open_ports = {listener.port for listener in listening}
    for service in services:
        if service.target_port not in open_ports:
            yield f"{service.name}: nothing listens on port {service.target_port}"
        owners = {o.name for x in listening if x.port == service.target_port for o in x.owners}
        only_loopback = all(x.ip.is_loopback for x in listening if x.port == service.target_port)
        if owners and only_loopback:
            yield f"{service.name}: listens on loopback only: it sees mesh callers as this host, not by their address"
    for claim in intent.refused:
        yield f"claim on {claim.address.ip} port {claim.address.port} is refused: {claim.reason}"
    if any(listener.port == HBONE for listener in listening if not _is_proxy(listener)):
        yield f"port {HBONE} is taken: mesh peers can't reach this host until it is free"


def _switched_off(paths: Paths) -> Iterable[str]:
    since = suspended_since(paths.suspended)
    if since is not None:
        when = since.strftime("%Y-%m-%d %H:%M")
        yield f"capture is switched off since {when} UTC; what stands here begins with: meshagent capture on"


def _is_proxy(listener: Listener) -> bool:
    """Executed by descriptor, an Envoy's name is a number; its executable says what it is."""
    return any(Path(owner.exe).name.startswith("envoy") for owner in listener.owners)


def _changes(paths: Paths, intent: Intent, new_user: bool, *, running: bool) -> Iterable[str]:
    for directory in (paths.state, paths.run):
        if not directory.exists():
            yield f"creates {directory}"
    if new_user:
        yield f"creates the system user {PROXY_USER}, which the proxy runs as"
    if running and render(intent).table:
        yield "replaces table inet meshagent by the rules below, in one transaction"
    elif render(intent).table:
        yield "loads table inet meshagent (the rules below) and table inet meshagent_anchor"
        yield "adds routes for virtual addresses and one ip rule with its routing table 28001"
        yield f"opens port {HBONE} for mesh peers (mutual TLS)"
