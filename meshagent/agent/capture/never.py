"""What stays direct even where everything that leaves is captured. Pure.

The way to the hub, the gateways and the resolvers must not lead through a proxy that needs them; ssh is how a person
gets back; the rest never leaves the link or means another thing on every host. Own addresses, DHCP and NTP need no
line: the rules return what is local first, and only TCP is captured.
"""

from ipaddress import IPv4Network, IPv6Network, ip_network

from meshagent.agent.capture.values import HostFacts
from meshagent.config.settings import CaptureConfig, PortRange
from meshagent.model.address import VIRTUAL4, VIRTUAL6, IPNetwork
from meshagent.model.ports import BRIDGED, HBONE, METRICS, OWN_LOCAL_PORTS

_SSH = 22
#: Loopback, link-local (169.254.169.254 is cloud metadata on IPv4), multicast, broadcast and "this network"; a virtual
#: address that no service has is refused at once, not handed to the proxy.
ALWAYS: tuple[IPNetwork, ...] = (
    *map(IPv4Network, ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32")),
    VIRTUAL4,
    *map(IPv6Network, ("::1/128", "fd00:ec2::254/128", "fe80::/10", "ff00::/8")),
    VIRTUAL6,
)


def networks(facts: HostFacts) -> tuple[IPNetwork, ...]:
    """Destinations that are never captured on this host, sorted."""
    known = {*facts.hub_addresses, *facts.gateways, *facts.nameservers}
    alone = {ip_network(address) for address in known if not getattr(address, "scope_id", None)}
    return tuple(sorted({*ALWAYS, *alone}, key=lambda network: (network.version, network)))


def ports(facts: HostFacts, forced: tuple[PortRange, ...]) -> tuple[PortRange, ...]:
    """Destination ports that are never captured: ssh, where this host's own sshd listens (its neighbours' often do
    too), and the proxy's own, at which the proxy ends what it is handed."""
    ssh = {port for port in (_SSH, *facts.sshd_ports) if not any(port in each for each in forced)}
    return tuple(PortRange(port, port) for port in sorted({*ssh, *OWN_LOCAL_PORTS}))


def inbound_ports(facts: HostFacts, config: CaptureConfig) -> tuple[PortRange, ...]:
    """Local ports that are never redirected: sshd's, that of the session that types, the mesh's own, and what
    agent.yaml excludes."""
    login = {p for p in (_SSH, *facts.sshd_ports, *facts.session_ports) if not any(p in f for f in config.force_ports)}
    own = (*OWN_LOCAL_PORTS, BRIDGED, HBONE, METRICS)
    return tuple(sorted({*(PortRange(port, port) for port in sorted({*login, *own})), *config.exclude.ports}))
