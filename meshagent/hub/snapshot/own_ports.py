"""Filter chains for ports at which peers speak mutual TLS themselves, as Istio's sidecars do.

A connection is told by its first bytes: TLS that offers a protocol of the mesh is ended here, and its certificate must
be of this trust domain. Everything else goes on as it came, other TLS too, or is closed where the port is strict: the
kernel, which refuses plain text elsewhere, can't tell the two apart.

The chains of one port are those of no other, so a port that comes or goes leaves all other connections alone.
"""

from collections.abc import Iterator

from envoy.config.listener.v3.listener_components_pb2 import Filter, FilterChain, FilterChainMatch
from envoy.config.route.v3.route_components_pb2 import Route, RouteAction, RouteMatch, VirtualHost
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2 as hcm
from envoy.extensions.filters.network.tcp_proxy.v3.tcp_proxy_pb2 import TcpProxy
from google.protobuf.wrappers_pb2 import BoolValue, UInt32Value

from meshagent.hub.snapshot import naming
from meshagent.hub.snapshot.http2 import server_options
from meshagent.hub.snapshot.http_manager import accepts_old_http, manager, network_filter
from meshagent.hub.snapshot.messages import seconds
from meshagent.hub.snapshot.tls import MESH_ALPN, sidecar_server_socket
from meshagent.hub.snapshot.view import SortedPort
from meshagent.model import stats


def chains(port: SortedPort, trust_domain: str) -> Iterator[FilterChain]:
    """Mutual TLS, other TLS, plain text.

    Other TLS needs a chain of its own: Envoy (1.40.0) doesn't go back to chains without a transport protocol once one
    with the right protocol was found, but to the default chain, which lets everything pass.
    """
    inside = _http(port) if port.protocol.is_http else _tcp(port, stats.INBOUND_MUTUAL_TLS, naming.INBOUND_PASSTHROUGH)
    yield FilterChain(
        name=f"{port.port} mutual TLS",
        filter_chain_match=FilterChainMatch(
            destination_port=UInt32Value(value=port.port), transport_protocol="tls", application_protocols=MESH_ALPN
        ),
        transport_socket=sidecar_server_socket(trust_domain, http=port.protocol.is_http),
        filters=[inside],
    )
    verdict, cluster = stats.INBOUND_REFUSED, naming.BLACK_HOLE
    if port.plain:
        verdict, cluster = stats.INBOUND_PLAIN, naming.INBOUND_PASSTHROUGH
    for name, transport in (("other TLS", "tls"), ("plain text", "")):
        yield FilterChain(
            name=f"{port.port} {name}",
            filter_chain_match=FilterChainMatch(
                destination_port=UInt32Value(value=port.port), transport_protocol=transport
            ),
            filters=[_tcp(port, verdict, cluster)],
        )


def _tcp(port: SortedPort, what: str, cluster: str) -> Filter:
    """Bytes as they are, however long nothing is said; counted under a name of its own."""
    return network_filter(
        "tcp_proxy", TcpProxy(stat_prefix=_stat(port, what), cluster=cluster, idle_timeout=seconds(0))
    )


def _http(port: SortedPort) -> Filter:
    """The caller's identity replaces whatever X-Forwarded-Client-Cert it sent."""
    name = _stat(port, stats.INBOUND_MUTUAL_TLS)
    config = manager(name, name)
    route = RouteAction(cluster=naming.inbound_passthrough(port.protocol), timeout=seconds(0))
    everything = VirtualHost(name=name, domains=["*"], routes=[Route(match=RouteMatch(prefix=""), route=route)])
    config.route_config.CopyFrom(RouteConfiguration(name=name, virtual_hosts=[everything]))
    config.http_protocol_options.CopyFrom(accepts_old_http(port.host))
    config.http2_protocol_options.CopyFrom(server_options())
    config.forward_client_cert_details = hcm.HttpConnectionManager.SANITIZE_SET
    config.set_current_client_cert_details.uri = True
    config.generate_request_id.CopyFrom(BoolValue(value=False))  # the peer's proxy has given one
    return network_filter("http_connection_manager", config)


def _stat(port: SortedPort, what: str) -> str:
    return f"{what}.{port.port}"
