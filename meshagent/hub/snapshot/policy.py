"""HostPolicy: what the mesh's PeerAuthentication says about plain text to each port that a host serves."""

from collections.abc import Iterable

from meshagent.hub.resources.precedence import plaintext_mode
from meshagent.hub.snapshot.view import Served
from meshagent.hub.state import HostView, MeshState
from meshagent.model.posture import PlaintextMode, stricter
from meshagent.protocol.pb.meshagent_v1_pb2 import HostPolicy


def host_policy(state: MeshState, host: HostView, served: Iterable[Served]) -> HostPolicy:
    """Workload port -> strict or not, sorted. Two services on one port: the stricter verdict holds for the port."""
    modes: dict[int, PlaintextMode] = {}
    for _, endpoint in served:
        mode = plaintext_mode(
            state.peer_authentications, state.root_namespace, host.namespace, endpoint.labels, endpoint.target_port
        )
        modes[endpoint.target_port] = stricter(mode, modes.get(endpoint.target_port, mode))
    ports = (HostPolicy.Port(port=p, strict=m is PlaintextMode.STRICT) for p, m in sorted(modes.items()))
    return HostPolicy(ports=ports)
