"""Clusters: towards a service's endpoints (client side) and towards a process of this host (server side).

What a client's cluster guards against: a host that vanishes (connect time-out 1 s, HTTP/2 pings, ejection at the first
failure that is ours to see), endpoints that are all marked unhealthy (panic: try them all rather than none), and
Envoy's default limit of 1,024 connections, which a database's clients may well exceed.
"""

from collections.abc import Iterable
from enum import Enum, auto

from envoy.config.cluster.v3.circuit_breaker_pb2 import CircuitBreakers
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.cluster.v3.outlier_detection_pb2 import OutlierDetection
from envoy.config.core.v3.address_pb2 import BindConfig
from envoy.config.core.v3.base_pb2 import RoutingPriority
from envoy.config.core.v3.protocol_pb2 import Http1ProtocolOptions, Http2ProtocolOptions, HttpProtocolOptions
from envoy.config.endpoint.v3.endpoint_components_pb2 import Endpoint, LbEndpoint, LocalityLbEndpoints
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2 as upstream_http
from envoy.type.v3.percent_pb2 import Percent
from google.protobuf.wrappers_pb2 import UInt32Value

from meshagent.hub.snapshot import naming
from meshagent.hub.snapshot.http2 import client_options
from meshagent.hub.snapshot.http_manager import title_case
from meshagent.hub.snapshot.messages import ads, mark_option, packed, seconds, socket_address
from meshagent.hub.snapshot.tls import client_socket, sidecar_client_socket
from meshagent.hub.snapshot.view import Inbound, Target
from meshagent.hub.state import MeshPort, MeshService
from meshagent.model.marks import CLIENT_SOURCE_MARK, PROXY_MARK
from meshagent.model.service import ServiceProtocol

CONNECT_TIMEOUT = 1.0

#: Towards addresses outside the mesh: five SYNs (0, 1, 3, 7 s and a last answer), for servers far away and busy.
PASSTHROUGH_TIMEOUT = 10.0
_NO_LIMIT = 2**32 - 1
_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

#: How long an idle connection to an HTTP application is kept for the next request. Applications close theirs after
#: 2 s (gunicorn) to 75 s (nginx) and a request sent into that moment is lost, so ours goes first.
APP_IDLE = 1.0


def black_hole() -> Cluster:
    """Where connections go that no listener wants: nowhere, they are closed."""
    return Cluster(
        name=naming.BLACK_HOLE,
        type=Cluster.STATIC,
        load_assignment=ClusterLoadAssignment(cluster_name=naming.BLACK_HOLE),
    )


def passthrough() -> Cluster:
    """To where the application dialled; hosts appear with their connections. Carries the bootstrap's mark."""
    return Cluster(
        name=naming.PASSTHROUGH,
        type=Cluster.ORIGINAL_DST,
        lb_policy=Cluster.CLUSTER_PROVIDED,
        connect_timeout=seconds(PASSTHROUGH_TIMEOUT),
        circuit_breakers=_without_limits(),
    )


def inbound_passthrough(protocol: ServiceProtocol = ServiceProtocol.TCP) -> Cluster:
    """To the process here that was dialled, from the caller's own address; one for each way of speaking."""
    cluster = passthrough()
    cluster.name = naming.inbound_passthrough(protocol)
    cluster.connect_timeout.CopyFrom(seconds(CONNECT_TIMEOUT))
    cluster.upstream_bind_config.CopyFrom(_bind(Target(None, None)))
    if protocol.is_http:
        _speak_as_application(cluster, protocol)
    return cluster


# client side


class Way(Enum):
    """How a service's endpoints are reached."""

    PLAIN = auto()  #: as they are
    TUNNEL = auto()  #: through their hosts' proxies (HBONE, port 15008)
    SIDECAR = auto()  #: mutual TLS on the service's own port, as Istio's sidecars do


def way(service: MeshService) -> Way:
    """One way for all endpoints of a service: what opens a tunnel is the listener, before an endpoint is chosen.

    Sidecars know no tunnel, so a service with one of them is called on its own port where all its endpoints say that
    they take mutual TLS there; else by tunnel, and the sidecars are left out. Without any endpoint a mesh service
    counts as tunnelled: nothing goes out in plain text by accident.
    """
    known = [endpoint for endpoint in service.endpoints if endpoint.spiffe_id]
    if not service.mtls or (service.endpoints and not known):
        return Way.PLAIN
    sidecars = any(endpoint.own_port_mtls and not endpoint.host_name for endpoint in known)
    return Way.SIDECAR if sidecars and all(endpoint.own_port_mtls for endpoint in known) else Way.TUNNEL


def tunnelled(service: MeshService) -> bool:
    """True when the service is reached through its hosts' proxies."""
    return way(service) is Way.TUNNEL


def outbound(service: MeshService, port: MeshPort, trust_domain: str) -> Cluster:
    """The cluster of one port of a service; its endpoints come by EDS under the same name."""
    cluster = Cluster(
        name=naming.outbound(service.host, port.number),
        type=Cluster.EDS,
        eds_cluster_config=Cluster.EdsClusterConfig(eds_config=ads()),
        connect_timeout=seconds(CONNECT_TIMEOUT),
        lb_policy=Cluster.LEAST_REQUEST,
        common_lb_config=_try_all_when_all_are_unhealthy(),
        circuit_breakers=_without_limits(),
        outlier_detection=_outliers(port.protocol),
    )
    accounts = service.service_accounts or tuple(e.spiffe_id for e in service.endpoints if e.spiffe_id)
    chosen = way(service)
    if chosen is Way.SIDECAR:
        sni = naming.sni(service.host, port.number)
        cluster.transport_socket.CopyFrom(sidecar_client_socket(accounts, trust_domain, sni, port.protocol))
    if chosen is Way.TUNNEL:
        cluster.transport_socket.CopyFrom(client_socket(accounts, trust_domain))
        _speak(cluster, http2=client_options())
    elif port.protocol.is_http:
        _speak_as_application(cluster, port.protocol)
    return cluster


def _try_all_when_all_are_unhealthy() -> Cluster.CommonLbConfig:
    """Panic only when (nearly) nobody is healthy, and health news at once (Envoy collects them for 1 s by default)."""
    return Cluster.CommonLbConfig(healthy_panic_threshold=Percent(value=1), update_merge_window=seconds(0))


def _without_limits() -> CircuitBreakers:
    unlimited = UInt32Value(value=_NO_LIMIT)
    thresholds = (
        CircuitBreakers.Thresholds(
            priority=priority,
            max_connections=unlimited,
            max_pending_requests=unlimited,
            max_requests=unlimited,
            max_retries=unlimited,
        )
        for priority in (RoutingPriority.DEFAULT, RoutingPriority.HIGH)
    )
    return CircuitBreakers(thresholds=thresholds)


def _outliers(protocol: ServiceProtocol) -> OutlierDetection:
    """One failure that we saw ourselves (no connection, no answer to pings) takes an endpoint out for 10 s.

    For tunnels a 5xx is the peer's proxy saying 'the process is not there', so it counts too. An HTTP application
    may answer 500 to one request and be well: not counted there.
    """
    of_tunnel = 0 if protocol.is_http else 100
    return OutlierDetection(
        split_external_local_origin_errors=True,
        consecutive_local_origin_failure=UInt32Value(value=1),
        enforcing_consecutive_local_origin_failure=UInt32Value(value=100),
        enforcing_local_origin_success_rate=UInt32Value(value=0),
        consecutive_5xx=UInt32Value(value=1),
        enforcing_consecutive_5xx=UInt32Value(value=of_tunnel),
        enforcing_success_rate=UInt32Value(value=0),
        interval=seconds(0.5),
        base_ejection_time=seconds(10),
        max_ejection_time=seconds(30),
        max_ejection_percent=UInt32Value(value=100),
    )


# server side


def inbound(served: Inbound, target: Target) -> Cluster:
    """The way to the process behind ``served``; routes that lead here say which address was dialled."""
    cluster = Cluster(
        name=naming.inbound(served.host, served.port, target.variant),
        connect_timeout=seconds(CONNECT_TIMEOUT),
        circuit_breakers=_without_limits(),
        upstream_bind_config=_bind(target),
    )
    if target.address is None:
        cluster.type = Cluster.ORIGINAL_DST
        cluster.lb_policy = Cluster.CLUSTER_PROVIDED
    else:
        cluster.type = Cluster.STATIC
        cluster.load_assignment.CopyFrom(_single(cluster.name, target, served.target_port))
    if served.protocol.is_http:
        _speak_as_application(cluster, served.protocol)
    return cluster


def inbounds(served: Iterable[Inbound]) -> dict[str, Cluster]:
    """Name -> cluster for everything a host serves."""
    found = (inbound(each, target) for each in served for _, target in each.targets)
    return {cluster.name: cluster for cluster in found}


def _bind(target: Target) -> BindConfig:
    """Own source address, or only the mark: a cluster's bind_config replaces the bootstrap's, mark and all.

    With the client's address (filter original_src) the mark must be the one whose answers come back to the proxy.
    """
    if target.source is None:
        return BindConfig(socket_options=[mark_option(CLIENT_SOURCE_MARK)])
    source = socket_address(target.source, 0).socket_address
    return BindConfig(source_address=source, socket_options=[mark_option(PROXY_MARK)])


def _single(name: str, target: Target, port: int) -> ClusterLoadAssignment:
    assert target.address is not None
    endpoint = LbEndpoint(endpoint=Endpoint(address=socket_address(target.address, port)))
    return ClusterLoadAssignment(cluster_name=name, endpoints=[LocalityLbEndpoints(lb_endpoints=[endpoint])])


# how a cluster speaks HTTP


def _speak_as_application(cluster: Cluster, protocol: ServiceProtocol) -> None:
    """HTTP as the application itself speaks it."""
    if protocol is ServiceProtocol.HTTP:
        _speak(cluster, http1=title_case(), idle=APP_IDLE)
    else:
        _speak(cluster, http2=Http2ProtocolOptions(allow_connect=True))


def _speak(
    cluster: Cluster,
    *,
    http1: Http1ProtocolOptions | None = None,
    http2: Http2ProtocolOptions | None = None,
    idle: float = 0,
) -> None:
    explicit = upstream_http.HttpProtocolOptions.ExplicitHttpConfig(
        http_protocol_options=http1, http2_protocol_options=http2
    )
    options = upstream_http.HttpProtocolOptions(explicit_http_config=explicit)
    if idle:
        options.common_http_protocol_options.CopyFrom(HttpProtocolOptions(idle_timeout=seconds(idle)))
    cluster.typed_extension_protocol_options[_HTTP_OPTIONS].CopyFrom(packed(options))
