"""Names of resources, in Istio's style, so that an operator who reads ``config_dump`` feels at home.

They are part of the wire between hub and agent: the agent reads the mesh's addresses from listener names.
"""

from meshagent.model.address import IPAddress
from meshagent.model.doors import PASSTHROUGH_CLUSTER

BLACK_HOLE = "BlackHoleCluster"
PASSTHROUGH = PASSTHROUGH_CLUSTER
INBOUND_PASSTHROUGH = "InboundPassthroughCluster"
VIRTUAL_OUTBOUND = "virtualOutbound"
VIRTUAL_OUTBOUND6 = "virtualOutbound6"
HBONE = "hbone"
HBONE6 = "hbone6"

#: The header that tells the server's proxy which HTTP service is meant; set by the client's proxy over whatever the
#: application sent, matched exactly and removed at the other end.
SERVICE_HEADER = "x-meshagent-service"

#: Response header between two proxies: 'the application was not reached' (so any request may be tried elsewhere).
UNREACHED_HEADER = "x-meshagent-unreached"


def outbound(host: str, port: int) -> str:
    """The cluster (and endpoint set) of one port of a service, as clients see it."""
    return f"outbound|{port}||{host}"


def inbound(host: str, port: int, variant: str = "") -> str:
    """The cluster that leads to the process behind a service's port. ``variant`` tells two ways to it apart."""
    return f"inbound|{port}|{variant}|{host}"


def listener(ip: IPAddress, port: int) -> str:
    """``240.240.0.5_3306``, ``2001:2::5_3306``."""
    return f"{ip}_{port}"


def http_route(host: str, port: int) -> str:
    """The route configuration of an HTTP service, shared by all its listeners."""
    return f"{host}:{port}"


def authority(host: str, port: int) -> str:
    """What a client names when it wants this service (CONNECT authority, service header): never an address."""
    return f"{host}:{port}"
