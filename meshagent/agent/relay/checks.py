"""Whether a resource can be read at all, before Envoy sees it: the right message, carrying the name it came under.

This is all the judgement there is while no Envoy is connected, and for the types the agent keeps for itself.
"""

from collections.abc import Callable

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from google.protobuf.message import DecodeError

from meshagent.protocol.pb.istio_nds_pb2 import NameTable
from meshagent.protocol.pb.meshagent_v1_pb2 import HostPolicy
from meshagent.protocol.types import CDS, EDS, HOST_POLICY, LDS, NDS, RDS

#: One resource larger than this is refused: 10,000 endpoints in one set make 1 MB.
MAX_BODY = 16 << 20

#: The name that a body carries inside; None for messages that carry none.
_READ: dict[str, Callable[[bytes], str | None]] = {
    CDS: lambda body: Cluster.FromString(body).name,
    EDS: lambda body: ClusterLoadAssignment.FromString(body).cluster_name,
    LDS: lambda body: Listener.FromString(body).name,
    RDS: lambda body: RouteConfiguration.FromString(body).name,
    NDS: lambda body: _nameless(NameTable.FromString(body)),
    HOST_POLICY: lambda body: _nameless(HostPolicy.FromString(body)),
}


def defect(type_url: str, name: str, body: bytes) -> str:
    """Why the resource can't be taken, or ''."""
    if len(body) > MAX_BODY:
        return f"is larger than {MAX_BODY >> 20} MiB"
    read = _READ.get(type_url)
    if read is None:
        return "is of a type that is not used here"
    try:
        inside = read(body)
    except DecodeError:
        return "can't be decoded"
    return "" if inside is None or inside == name else f"is named {inside[:100]!r} inside"


def _nameless(message: object) -> None:
    del message
