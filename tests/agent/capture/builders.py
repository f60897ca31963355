"""Short ways to write wishes and facts in tests."""

from ipaddress import ip_address
from typing import Any

from meshagent.agent.capture import intent as intents
from meshagent.agent.capture.values import HostFacts, Intent, Wishes
from meshagent.model.address import MeshAddress
from meshagent.model.posture import Posture
from meshagent.model.service import DeclaredService

PROXY_UID = 61001


def pair(text: str) -> MeshAddress:
    """``10.1.2.3:80`` or ``[2001:2::7]:80``."""
    host, _, port = text.rpartition(":")
    return MeshAddress(ip_address(host.strip("[]")), int(port))


def declared(name: str, port: int, target: int = 0) -> DeclaredService:
    return DeclaredService(name, port, target or port)


def host_facts(**changes: Any) -> HostFacts:
    """A host 10.0.0.5 / fd00::5 with gateway .1, resolver .2, hub .9 and sshd on 22 and 2222."""
    values: dict[str, Any] = {
        "proxy_uid": PROXY_UID,
        "own_addresses": frozenset(map(ip_address, ("10.0.0.5", "fd00::5"))),
        "gateways": frozenset({ip_address("10.0.0.1")}),
        "nameservers": (ip_address("10.0.0.2"), ip_address("fd00::2")),
        "hub_addresses": frozenset({ip_address("10.0.0.9")}),
        "sshd_ports": frozenset({22, 2222}),
    }
    return HostFacts(**(values | changes))


def decided(posture: Posture = Posture.PERMISSIVE, *mesh: str, facts: HostFacts | None = None, **wishes: Any) -> Intent:
    return intents.decide(Wishes(posture, mesh=frozenset(map(pair, mesh)), **wishes), facts or host_facts())
