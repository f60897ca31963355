"""The local proxy's bound listeners, as capture sees them: it uses a door only once the proxy has it."""

from dataclasses import dataclass
from enum import StrEnum

#: Clusters that lead to wherever the connection was meant to go; names as in Istio.
PASSTHROUGH_CLUSTER = "PassthroughCluster"
#: And the one that leads nowhere.
BLACK_HOLE_CLUSTER = "BlackHoleCluster"
#: Those that lead to the very address of this host that was dialled, by what is spoken there.
INBOUND_PASSTHROUGH_CLUSTER = "InboundPassthroughCluster"
INBOUND_PASSTHROUGH_CLUSTERS = tuple(f"{INBOUND_PASSTHROUGH_CLUSTER}{what}" for what in ("", "Http", "Http2"))


class Door(StrEnum):
    """Where connections enter the proxy, and what becomes of them."""

    OUTBOUND = "outbound"  #: outbound: what the kernel redirects is taken in
    PASSTHROUGH = "passthrough"  #: outbound: what no service wants goes on to where it was dialled

    BRIDGES = "bridges"  #: outbound: what containers of this host send to the mesh
    INBOUND_TPROXY = "inbound-tproxy"  #: inbound: handed over with their destination as it is
    INBOUND_REDIRECT = "inbound-redirect"  #: inbound: redirected, where the kernel can't do the former

    #: inbound, by the same two ways: ports that the mesh wants sorted into mutual TLS and everything else. Their first
    #: bytes are waited for, so other ports must not come in there.
    PORTS_TPROXY = "ports-tproxy"
    PORTS_REDIRECT = "ports-redirect"


INBOUND_DOORS = frozenset({Door.INBOUND_TPROXY, Door.INBOUND_REDIRECT})
PORT_DOORS = frozenset({Door.PORTS_TPROXY, Door.PORTS_REDIRECT})

#: What a host has to ask for: a listener that most hosts have no use for.
ON_REQUEST = frozenset({Door.BRIDGES, *INBOUND_DOORS, *PORT_DOORS})

#: A door and the address family (4 or 6) that it is open for.
OpenDoor = tuple[Door, int]


@dataclass(frozen=True, slots=True, order=True)
class PortDoor:
    """A local port that the proxy's inbound listener has an answer of its own for: mutual TLS of the mesh is ended
    there. ``plain``: everything else is passed on as it came, instead of being closed."""

    door: Door
    family: int
    port: int
    plain: bool
