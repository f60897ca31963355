"""What is captured on this host and why: wishes and facts in, one frozen ``Intent`` out. Pure.

Outbound, only TCP to the mesh's own address:port pairs is captured, unless everything was asked for; inbound, plain
text on declared ports is counted or refused. Everything else never meets a verdict of ours. What must never be captured
is decided here, once, for every backend: the host's own addresses, the hub, resolvers, gateways, loopback, link-local,
sshd and the session that types.
"""

from collections.abc import Iterator, Mapping
from ipaddress import IPv6Address

from meshagent.agent.capture import claims, never
from meshagent.agent.capture.values import HostFacts, Intent, Ipv6, Mode, Spared, Wishes
from meshagent.config.settings import Backend, CaptureConfig, FailurePolicy, InboundScope, Ipv6Mode, OutboundScope
from meshagent.model.address import IPAddress
from meshagent.model.doors import Door
from meshagent.model.errors import MeshagentError, UsageError
from meshagent.model.ports import HBONE, METRICS, OWN_LOCAL_PORTS
from meshagent.model.posture import PlaintextMode, Posture, stricter

__all__ = ["HostFacts", "Intent", "Wishes", "decide"]


def decide(wishes: Wishes, facts: HostFacts) -> Intent:
    """The intent. Raises ``MeshagentError`` where a wish can't be met here (it says which and what to do)."""
    spared = _spared(wishes, facts)
    mode = _mode(wishes)
    _require_possible(wishes.config, facts, mode)
    bare = Intent(mode, facts.proxy_uid, ipv6_usable=facts.ipv6_usable, spared=spared, fail_open=_fail_open(wishes))
    if mode is not Mode.ACTIVE:
        return bare
    ipv6 = _ipv6(wishes.config.ipv6, facts)
    considered = sorted(
        (a for a in wishes.mesh if a.ip.version == 4 or ipv6 is not Ipv6.LEAVE), key=lambda a: (a.ip.version, a)
    )
    refused = tuple(
        claim for address in considered if (claim := claims.refuse(address, facts, wishes.config.force_ports))
    )
    kept = [address for address in considered if address not in {claim.address for claim in refused}]
    counted, strict = _inbound(wishes, {item.port for item in spared})
    everything = _everything(wishes, ipv6)
    return Intent(
        mode=mode,
        proxy_uid=facts.proxy_uid,
        virtual=tuple(address for address in kept if address.virtual),
        claimed=tuple(address for address in kept if not address.virtual),
        nameservers=_nameservers(facts, ipv6) if wishes.capture_dns else (),
        counted_ports=counted,
        strict_ports=strict,
        ipv6=ipv6,
        ipv6_usable=facts.ipv6_usable,
        fail_open=bare.fail_open,
        exclude=wishes.config.exclude,
        all_families=everything,
        direct=never.networks(facts) if everything else (),
        direct_ports=never.ports(facts, wishes.config.force_ports) if everything else (),
        spared=spared,
        refused=refused,
        waiting=tuple(_waiting(wishes, everything)),
    )


# --- parts of the decision -------------------------------------------------------------------------------------------


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


def _waiting(wishes: Wishes, everything: tuple[int, ...]) -> Iterator[str]:
    if wishes.config.outbound is OutboundScope.ALL and 4 not in everything:
        yield "capture.outbound: all waits until the proxy can pass on what isn't for the mesh"


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


def _require_possible(config: CaptureConfig, facts: HostFacts, mode: Mode) -> None:
    if mode is Mode.OFF:
        return
    if config.backend is Backend.IPTABLES or not facts.nft_usable:
        raise MeshagentError(
            "no-capture-backend",
            "there is nothing to capture with: "
            + ("capture.backend is iptables" if config.backend is Backend.IPTABLES else "nftables can't be used here"),
            hint="install nftables (libnftables1) on a kernel with nf_tables, and set capture.backend to auto",
        )
    for name, asked in (
        ("capture.inbound: all", config.inbound is InboundScope.ALL),
        ("capture.units", bool(config.units)),
        ("capture.bridges", bool(config.bridges)),
        ("capture.exclude.units", bool(config.exclude.units)),
    ):
        if asked:
            raise UsageError(
                "unsupported-capture", f"{name} is not supported by this version", hint="remove it from agent.yaml"
            )
    if config.ipv6 is Ipv6Mode.CAPTURE and not facts.ipv6_usable:
        raise MeshagentError(
            "ipv6-unusable",
            "capture.ipv6 is 'capture', but this host has no IPv6 loopback address for the proxy to listen on",
            hint="enable IPv6 on lo, or set capture.ipv6 to auto",
        )
