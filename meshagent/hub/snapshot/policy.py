"""HostPolicy: what the mesh says about each port that a host serves: plain text by PeerAuthentication, and whether what
comes in passes the proxy first.

It does where peers speak mutual TLS on the port itself. The sign of that is Istio's own: the workload's label
``security.istio.io/tlsMode: istio``, in services.d or in a WorkloadEntry.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from meshagent.hub.resources.precedence import plaintext_mode
from meshagent.hub.snapshot.view import Served, SortedPort, protocol_of
from meshagent.hub.state import HostView, MeshState
from meshagent.model.policy import RedirectReason
from meshagent.model.posture import PlaintextMode, Posture, stricter
from meshagent.model.service import ServiceProtocol
from meshagent.protocol.pb.meshagent_v1_pb2 import HostPolicy

_REASONS = {None: HostPolicy.REDIRECT_NONE, RedirectReason.MUTUAL_TLS: HostPolicy.REDIRECT_MUTUAL_TLS}


@dataclass(frozen=True, slots=True)
class PortVerdict:
    """What holds for one port. ``host`` is that of a service on it; ``protocol`` is TCP where they differ."""

    host: str
    mode: PlaintextMode
    protocol: ServiceProtocol
    redirect: RedirectReason | None = None


def port_verdicts(state: MeshState, host: HostView, served: Iterable[Served]) -> dict[int, PortVerdict]:
    """By workload port, sorted. Two services on one port: the stricter verdict and any reason hold for the port."""
    found: dict[int, PortVerdict] = {}
    for service, endpoint in served:
        mode = plaintext_mode(
            state.peer_authentications, state.root_namespace, host.namespace, endpoint.labels, endpoint.target_port
        )
        redirect = RedirectReason.MUTUAL_TLS if endpoint.own_port_mtls else None
        here = PortVerdict(service.host, mode, protocol_of(service, endpoint), redirect)
        found[endpoint.target_port] = _both(here, found.get(endpoint.target_port, here))
    return dict(sorted(found.items()))


def _both(one: PortVerdict, other: PortVerdict) -> PortVerdict:
    protocol = one.protocol if one.protocol is other.protocol else ServiceProtocol.TCP
    return PortVerdict(other.host, stricter(one.mode, other.mode), protocol, one.redirect or other.redirect)


def sorted_ports(verdicts: Mapping[int, PortVerdict], host: HostView) -> tuple[SortedPort, ...]:
    """Ports at which the host's proxy tells mutual TLS from everything else. Nothing else is let in where the mesh or
    the host's own posture is strict."""
    own = PlaintextMode.STRICT if host.posture is Posture.STRICT else PlaintextMode.PERMISSIVE
    return tuple(
        SortedPort(each.host, port, each.protocol, plain=stricter(own, each.mode) is PlaintextMode.PERMISSIVE)
        for port, each in verdicts.items()
        if each.redirect is RedirectReason.MUTUAL_TLS
    )


def host_policy(verdicts: Mapping[int, PortVerdict]) -> HostPolicy:
    """The verdicts as the host is told them."""
    return HostPolicy(
        ports=[
            HostPolicy.Port(port=port, strict=each.mode is PlaintextMode.STRICT, redirect=_REASONS[each.redirect])
            for port, each in verdicts.items()
        ]
    )
