"""The local proxy's bound listeners, as capture sees them: it uses a door only once the proxy has it."""

from enum import StrEnum

#: Clusters that lead to wherever the connection was meant to go; names as in Istio.
PASSTHROUGH_CLUSTER = "PassthroughCluster"


class Door(StrEnum):
    """Where connections enter the proxy, and what becomes of them."""

    OUTBOUND = "outbound"  #: outbound: what the kernel redirects is taken in
    PASSTHROUGH = "passthrough"  #: outbound: what no service wants goes on to where it was dialled

    BRIDGES = "bridges"  #: outbound: what containers of this host send to the mesh
    INBOUND_TPROXY = "inbound-tproxy"  #: inbound: handed over with their destination as it is
    INBOUND_REDIRECT = "inbound-redirect"  #: inbound: redirected, where the kernel can't do the former


#: What a host has to ask for: a listener that most hosts have no use for.
ON_REQUEST = frozenset({Door.BRIDGES, Door.INBOUND_TPROXY, Door.INBOUND_REDIRECT})

#: A door and the address family (4 or 6) that it is open for.
OpenDoor = tuple[Door, int]
