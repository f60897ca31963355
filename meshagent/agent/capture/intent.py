"""What is captured on this host and why: wishes and facts in, one frozen ``Intent`` out. Pure.

Outbound, only TCP to the mesh's own address:port pairs is captured, unless everything was asked for; inbound, plain
text on declared ports is counted or refused. Everything else never meets a verdict of ours. What must never be captured
is decided here, once, for every backend: the host's own addresses, the hub, resolvers, gateways, loopback, link-local,
sshd and the session that types.
"""

from collections.abc import Iterator, Mapping, Set
from ipaddress import IPv6Address
from operator import attrgetter

from meshagent.agent.capture import claims, never
from meshagent.agent.capture.backend import choose, tproxy
from meshagent.agent.capture.values import HostFacts, Intent, Ipv6, Mode, Redirected, Spared, Wishes
from meshagent.config.settings import (
    Backend,
    CaptureConfig,
    FailurePolicy,
    InboundScope,
    Ipv6Mode,
    OutboundScope,
    RedirectMode,
)
from meshagent.model.address import IPAddress, MeshAddress
from meshagent.model.cgroup import Cgroup
from meshagent.model.doors import Door
from meshagent.model.errors import MeshagentError
from meshagent.model.policy import HostPolicy, RedirectReason
from meshagent.model.ports import HBONE, METRICS, OWN_LOCAL_PORTS
from meshagent.model.posture import PlaintextMode, Posture, stricter

__all__ = ["HostFacts", "Intent", "Wishes", "decide"]


NO_POLICY = HostPolicy()


def decide(wishes: Wishes, facts: HostFacts) -> Intent:
    """The intent. Raises ``MeshagentError`` where a wish can't be met here (it says which and what to do)."""
    spared = _spared(wishes, facts)
    mode = _mode(wishes)
    backend = _require_possible(wishes.config, facts, mode)
    bare = Intent(
        mode,
        facts.proxy_uid,
        ipv6_usable=facts.ipv6_usable,
        spared=spared,
        fail_open=_fail_open(wishes),
        backend=backend,
    )
    if mode is not Mode.ACTIVE:
        return bare
    ipv6 = _ipv6(wishes.config.ipv6, facts)
    considered = _considered(wishes.mesh, ipv6)
    refused = tuple(
        claim for address in considered if (claim := claims.refuse(address, facts, wishes.config.force_ports))
    )
    not_ours = {claim.address for claim in refused}
    kept = [address for address in considered if address not in not_ours] if not_ours else considered
    virtual, claimed = [address for address in kept if address.virtual], [each for each in kept if not each.virtual]
    unserved = () if bare.fail_open else _unserved(wishes, facts, ipv6)
    counted, strict = _inbound(wishes, {item.port for item in spared})
    everything = _everything(wishes, ipv6)
    shut = () if bare.fail_open else _shut(wishes, ipv6, everything)
    bridged, arriving = _bridged(wishes, ipv6), _arriving(wishes, facts, ipv6)
    asked = _asked(wishes, {*counted, *strict})
    redirected = _redirected(wishes, facts, ipv6, asked, strict)
    any_arriving = bool(arriving or redirected)
    return Intent(
        mode=mode,
        proxy_uid=facts.proxy_uid,
        virtual=tuple(virtual),
        claimed=tuple(claimed),
        unserved=unserved,
        nameservers=_nameservers(facts, ipv6) if wishes.capture_dns else (),
        counted_ports=counted,
        strict_ports=strict,
        ipv6=ipv6,
        ipv6_usable=facts.ipv6_usable,
        fail_open=bare.fail_open,
        exclude=wishes.config.exclude,
        all_families=everything,
        refused_families=shut,
        direct=never.networks(facts) if everything or shut else (),
        direct_ports=never.ports(facts, wishes.config.force_ports) if everything or shut else (),
        inbound_families=arriving,
        inbound_mode=_redirect_mode(wishes.config, facts) if any_arriving else RedirectMode.TPROXY,
        inbound_direct_ports=never.inbound_ports(facts, wishes.config) if any_arriving else (),
        redirected=redirected,
        bridges=tuple(sorted(set(wishes.config.bridges))) if bridged else (),
        bridged_families=bridged,
        only_units=bool(wishes.config.units),
        units=_running(wishes.config.units, facts),
        exclude_units=_running(wishes.config.exclude.units, facts),
        spared=spared,
        refused=refused,
        waiting=(
            *_waiting(wishes, (*everything, *shut), bridged, arriving),
            *_waiting_ports(asked.keys() - {each.port for each in redirected}),
            *_waiting_units(wishes.config, facts),
        ),
        backend=backend,
    )


# --- parts of the decision -------------------------------------------------------------------------------------------


def _considered(addresses: frozenset[MeshAddress], ipv6: Ipv6) -> list[MeshAddress]:
    usable = (address for address in addresses if address.ip.version == 4 or ipv6 is not Ipv6.LEAVE)
    return sorted(usable, key=attrgetter("place"))


def _unserved(wishes: Wishes, facts: HostFacts, ipv6: Ipv6) -> tuple[MeshAddress, ...]:
    """Literals that must not go direct though they can't be captured; virtual addresses have no direct way anyway."""
    found = (address for address in _considered(wishes.unserved - wishes.mesh, ipv6) if not address.virtual)
    return tuple(address for address in found if not claims.refuse(address, facts, wishes.config.force_ports))


def _mode(wishes: Wishes) -> Mode:
    if wishes.posture.captures_outbound:
        return Mode.ACTIVE
    return Mode.DRAIN if wishes.draining else Mode.OFF


def _fail_open(wishes: Wishes) -> bool:
    policy = wishes.config.on_proxy_failure
    if policy is FailurePolicy.AUTO:
        return wishes.posture is not Posture.STRICT
    return policy is FailurePolicy.OPEN


def _ipv6(mode: Ipv6Mode, facts: HostFacts) -> Ipv6:
    """``auto`` captures where the proxy can listen on ::1, else nothing could leave by IPv6 anyway."""
    if mode is Ipv6Mode.AUTO:
        return Ipv6.CAPTURE if facts.ipv6_usable else Ipv6.LEAVE
    return Ipv6(mode.value)


def _everything(wishes: Wishes, ipv6: Ipv6) -> tuple[int, ...]:
    """IP versions of which everything is captured: a proxy without a way on would be the end of every connection."""
    if wishes.config.outbound is not OutboundScope.ALL:
        return ()
    families = (4,) if ipv6 is Ipv6.LEAVE else (4, 6)
    return tuple(v for v in families if wishes.has(Door.PASSTHROUGH, v) or (v, ipv6) == (6, Ipv6.REFUSE))


def _shut(wishes: Wishes, ipv6: Ipv6, everything: tuple[int, ...]) -> tuple[int, ...]:
    """IP versions whose port a stranger holds, or the proxy could not bind: there, refused is what would be captured.

    Where nobody knows of such a port yet (the first start of a proxy) nothing is refused, as nothing is captured.
    """
    if wishes.config.outbound is not OutboundScope.ALL:
        return ()
    return tuple(v for v in _captured_families(ipv6) if v in wishes.shut and v not in everything)


def _bridged(wishes: Wishes, ipv6: Ipv6) -> tuple[int, ...]:
    if not wishes.config.bridges:
        return ()
    return tuple(v for v in _captured_families(ipv6) if wishes.has(Door.BRIDGES, v))


def _arriving(wishes: Wishes, facts: HostFacts, ipv6: Ipv6) -> tuple[int, ...]:
    """IP versions of which everything that comes in passes the proxy."""
    if wishes.config.inbound is not InboundScope.ALL or not wishes.posture.serves_inbound:
        return ()
    door = _inbound_door(wishes.config, facts)
    return tuple(v for v in _captured_families(ipv6) if wishes.has(door, v))


def _asked(wishes: Wishes, declared: set[int]) -> dict[int, RedirectReason]:
    """Declared ports that the mesh wants redirected; those that are spared are not among ``declared``."""
    return {port: reason for port, reason in sorted(wishes.policy.redirect.items()) if port in declared}


def _redirected(
    wishes: Wishes, facts: HostFacts, ipv6: Ipv6, asked: Mapping[int, RedirectReason], strict: tuple[int, ...]
) -> tuple[Redirected, ...]:
    """Those at which the proxy does what is wanted. A listener that passes plain text on is not enough for a strict
    port: until there is a stricter one the kernel refuses as it does elsewhere."""
    door, families, found = _port_door(wishes.config, facts), _captured_families(ipv6), []
    for port, reason in asked.items():
        closed = port in strict
        there = {each for each in wishes.ports or () if (each.door, each.port) == (door, port)}
        usable = [each for each in there if each.family in families and not (closed and each.plain)]
        known = tuple(sorted(each.family for each in usable)) if wishes.ports is not None else families
        if known:
            found.append(Redirected(port, reason, known, plain=not closed and all(each.plain for each in usable)))
    return tuple(found)


def _captured_families(ipv6: Ipv6) -> tuple[int, ...]:
    return (4, 6) if ipv6 is Ipv6.CAPTURE else (4,)


def _redirect_mode(config: CaptureConfig, facts: HostFacts) -> RedirectMode:
    """TPROXY where it can be: host firewalls then still see the port that was dialled."""
    usable = tproxy(config, facts) and config.mode is not RedirectMode.REDIRECT
    return RedirectMode.TPROXY if usable else RedirectMode.REDIRECT


def _inbound_door(config: CaptureConfig, facts: HostFacts) -> Door:
    by_tproxy = _redirect_mode(config, facts) is RedirectMode.TPROXY
    return Door.INBOUND_TPROXY if by_tproxy else Door.INBOUND_REDIRECT


def _port_door(config: CaptureConfig, facts: HostFacts) -> Door:
    by_tproxy = _redirect_mode(config, facts) is RedirectMode.TPROXY
    return Door.PORTS_TPROXY if by_tproxy else Door.PORTS_REDIRECT


def wanted_doors(
    config: CaptureConfig, posture: Posture, facts: HostFacts, policy: HostPolicy = NO_POLICY
) -> frozenset[Door]:
    """The listeners that settings and mesh need beside those that every proxy has."""
    found: set[Door] = set()
    if config.bridges and posture.captures_outbound:
        found.add(Door.BRIDGES)
    if config.inbound is InboundScope.ALL and posture.serves_inbound:
        found.add(_inbound_door(config, facts))
    if policy.redirect and posture.serves_inbound:
        found.add(_port_door(config, facts))
    return frozenset(found)


def _running(units: tuple[str, ...], facts: HostFacts) -> tuple[Cgroup, ...]:
    return tuple(group for group in facts.cgroups if group.unit in units)


def _waiting_units(config: CaptureConfig, facts: HostFacts) -> Iterator[str]:
    """A unit that doesn't run has no control group that a rule could name; that is no mistake."""
    running = {group.unit for group in facts.cgroups}
    for where, units, meaning in (
        ("capture.units", config.units, "captured"),
        ("capture.exclude.units", config.exclude.units, "excluded"),
    ):
        if missing := sorted(set(units) - running):
            yield f"{where}: {', '.join(missing)} will be {meaning} when started"


def _waiting(
    wishes: Wishes, everything: tuple[int, ...], bridged: tuple[int, ...], arriving: tuple[int, ...]
) -> Iterator[str]:
    if wishes.config.bridges and not bridged:
        yield "capture.bridges waits until the proxy has a listener for containers"
    if wishes.config.inbound is InboundScope.ALL and wishes.posture.serves_inbound and not arriving:
        yield "capture.inbound: all waits until the proxy has a listener for what comes in"
    if wishes.config.outbound is OutboundScope.ALL and 4 not in everything:
        yield "capture.outbound: all waits until the proxy can pass on what isn't for the mesh"


def _waiting_ports(missing: Set[int]) -> Iterator[str]:
    if missing:
        ports = ", ".join(map(str, sorted(missing)))
        yield f"port {ports}: mutual TLS on the port itself waits until the proxy has a listener for it"


def _nameservers(facts: HostFacts, ipv6: Ipv6) -> tuple[IPAddress, ...]:
    """IPv6 link-local ones stay direct: a packet for fe80::/10 can't be turned to ::1 and find its way back."""
    usable = (
        address for address in facts.nameservers if address.version == 4 or _redirectable6(IPv6Address(address), ipv6)
    )
    return tuple(sorted(set(usable), key=lambda address: (address.version, address)))


def _redirectable6(address: IPv6Address, ipv6: Ipv6) -> bool:
    return ipv6 is Ipv6.CAPTURE and not address.is_link_local


def _spared(wishes: Wishes, facts: HostFacts) -> tuple[Spared, ...]:
    reasons: dict[int, str] = {}
    for ports, reason in (
        (facts.sshd_ports, "sshd listens here"),
        (facts.session_ports, "a remote session comes in here"),
    ):
        for port in ports:
            if not any(port in forced for forced in wishes.config.force_ports):
                reasons.setdefault(port, reason)
    for service in wishes.services:
        if service.target_port in (*OWN_LOCAL_PORTS, HBONE, METRICS):
            reasons.setdefault(service.target_port, "it is a port of the mesh itself")
        elif any(service.target_port in excluded for excluded in wishes.config.exclude.ports):
            reasons.setdefault(service.target_port, "excluded in agent.yaml")
    return tuple(Spared(port, reasons[port]) for port in sorted(reasons))


def _inbound(wishes: Wishes, spared: set[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Declared ports whose plain-text callers are counted, and those where they are refused."""
    if not wishes.posture.serves_inbound:
        return (), ()
    own = PlaintextMode.STRICT if wishes.posture is Posture.STRICT else PlaintextMode.PERMISSIVE
    verdicts: Mapping[int, PlaintextMode] = {
        service.target_port: stricter(own, wishes.policy.plaintext.get(service.target_port, own))
        for service in wishes.services
        if service.target_port not in spared
    }
    strict = {port for port, verdict in verdicts.items() if verdict is PlaintextMode.STRICT}
    return tuple(sorted(verdicts.keys() - strict)), tuple(sorted(strict))


# --- what can't be done ----------------------------------------------------------------------------------------------


def _require_possible(config: CaptureConfig, facts: HostFacts, mode: Mode) -> Backend:
    """Returns the backend; where nothing is to be captured any will do."""
    if mode is Mode.OFF:
        return Backend.NFT if facts.nft_usable and config.backend is not Backend.IPTABLES else Backend.IPTABLES
    backend = choose(config, facts)
    if (config.units or config.exclude.units) and not facts.cgroup_usable:
        raise MeshagentError(
            "cgroup-unusable",
            "capture.units and exclude.units need nftables that can match control groups (nft 1.0, kernel 5.13)",
            hint="name users (exclude.uids) instead, or upgrade; the host needs a cgroup v2 tree below /sys/fs/cgroup",
        )
    if (config.inbound, config.mode) == (InboundScope.ALL, RedirectMode.TPROXY) and not facts.tproxy_usable:
        raise MeshagentError(
            "tproxy-unusable",
            "capture.mode is 'tproxy', but this kernel's nftables doesn't have it",
            hint="load nft_tproxy, or set capture.mode to auto or redirect",
        )
    if config.ipv6 is Ipv6Mode.CAPTURE and not facts.ipv6_usable:
        raise MeshagentError(
            "ipv6-unusable",
            "capture.ipv6 is 'capture', but this host has no IPv6 loopback address for the proxy to listen on",
            hint="enable IPv6 on lo, or set capture.ipv6 to auto",
        )
    return backend
