"""The local proxy's bound listeners, as capture sees them: it uses a door only once the proxy has it."""

from enum import StrEnum

#: Clusters that lead to wherever the connection was meant to go; names as in Istio.
PASSTHROUGH_CLUSTER = "PassthroughCluster"


class Door(StrEnum):
    """Where connections enter the proxy, and what becomes of them."""

    OUTBOUND = "outbound"  #: outbound: what the kernel redirects is taken in
    PASSTHROUGH = "passthrough"  #: outbound: what no service wants goes on to where it was dialled


#: A door and the address family (4 or 6) that it is open for.
OpenDoor = tuple[Door, int]
