"""Names of resources, in Istio's style, so that an operator who reads ``config_dump`` feels at home.

They are part of the wire between hub and agent: the agent reads the mesh's addresses from listener names.
"""

from meshagent.model.address import IPAddress
from meshagent.model.doors import BLACK_HOLE_CLUSTER, INBOUND_PASSTHROUGH_CLUSTER, PASSTHROUGH_CLUSTER
from meshagent.model.service import ServiceProtocol

BLACK_HOLE = BLACK_HOLE_CLUSTER
PASSTHROUGH = PASSTHROUGH_CLUSTER
INBOUND_PASSTHROUGH = INBOUND_PASSTHROUGH_CLUSTER
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


def inbound_passthrough(protocol: ServiceProtocol) -> str:
    """The cluster that leads to the very address that was dialled, for what is spoken to it."""
    if not protocol.is_http:
        return INBOUND_PASSTHROUGH
    return f"{INBOUND_PASSTHROUGH}{'Http' if protocol is ServiceProtocol.HTTP else 'Http2'}"


def sni(host: str, port: int) -> str:
    """The server name by which a sidecar's client says which service it wants (Istio's form, without a subset)."""
    return f"outbound_.{port}_._.{host}"


def listener(ip: IPAddress, port: int) -> str:
    """``240.240.0.5_3306``, ``2001:2::5_3306``."""
    return f"{ip}_{port}"


def http_route(host: str, port: int) -> str:
    """The route configuration of an HTTP service, shared by all its listeners."""
    return f"{host}:{port}"


def authority(host: str, port: int) -> str:
    """What a client names when it wants this service (CONNECT authority, service header): never an address."""
    return f"{host}:{port}"
