"""What a mesh may not claim on this host. Pure.

The agent decides this, not the hub: a mesh that claims a host's gateway must not be able to cut the host off.
"""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address

from meshagent.agent.capture.values import HostFacts, RefusedClaim
from meshagent.config.settings import PortRange
from meshagent.model.address import MeshAddress

#: Cloud metadata on IPv6 (AWS IMDS); on IPv4 it lives in 169.254.0.0/16, which is link-local as a whole.
_METADATA6 = IPv6Address("fd00:ec2::254")
_SSH = 22


def refuse(address: MeshAddress, facts: HostFacts, force_ports: tuple[PortRange, ...] = ()) -> RefusedClaim | None:
    """Why this host doesn't hand ``address`` over to the mesh; None when it does. Virtual addresses are the mesh's."""
    if address.virtual:
        return None
    forced = any(address.port in ports for ports in force_ports)
    for code, applies, reason in _reasons(address, facts, forced):
        if applies:
            return RefusedClaim(address, code, reason)
    return None


def _reasons(address: MeshAddress, facts: HostFacts, forced: bool) -> Iterable[tuple[str, bool, str]]:
    ip, port = address.ip, address.port
    yield "own-address", ip in facts.own_addresses, "it is an address of this host: always direct"
    yield "loopback", ip.is_loopback, "loopback never leaves the host"
    yield "link-local", ip.is_link_local or ip == _METADATA6, "link-local and cloud metadata are never captured"
    yield "multicast", ip.is_multicast or ip == IPv4Address("255.255.255.255"), "it is not the address of one host"
    yield "mapped", _is_mapped(address), "IPv4 in IPv6 notation never meets a rule of IPv6; claim the IPv4 address"
    yield "unspecified", ip.is_unspecified, "it is not an address"
    yield "hub", ip in facts.hub_addresses, "the hub must stay reachable without the mesh"
    yield "gateway", ip in facts.gateways, "it is this host's gateway"
    yield "resolver", ip in facts.nameservers, "it is this host's resolver"
    yield "ssh", port == _SSH and not forced, "port 22 is never captured; capture.force_ports allows it"
    yield (
        "sshd-port",
        port in facts.sshd_ports and not forced,
        "sshd listens on this port; capture.force_ports allows it",
    )


def _is_mapped(address: MeshAddress) -> bool:
    """``::ffff:a.b.c.d`` (RFC 4291 section 2.5.5.2): a socket that dials it sends IPv4."""
    return isinstance(address.ip, IPv6Address) and address.ip.ipv4_mapped is not None
