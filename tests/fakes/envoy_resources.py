"""Envoy resources small enough to read: an endpoint set, a cluster with it, a listener to it, a name table."""

import hashlib

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.core.v3.base_pb2 import OUTBOUND
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.filters.http.router.v3.router_pb2 import Router
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from envoy.extensions.filters.network.tcp_proxy.v3.tcp_proxy_pb2 import TcpProxy
from google.protobuf.message import Message

from meshagent.protocol.entry import Entry
from meshagent.protocol.pb.istio_nds_pb2 import NameTable


def entry(message: Message) -> Entry:
    body = message.SerializeToString(deterministic=True)
    return Entry(hashlib.sha256(body).hexdigest()[:16], body)


def eds_cluster(name: str, connect_seconds: int = 1) -> Cluster:
    cluster = Cluster(name=name, type=Cluster.EDS)
    cluster.connect_timeout.seconds = connect_seconds
    cluster.eds_cluster_config.eds_config.ads.SetInParent()
    cluster.eds_cluster_config.eds_config.resource_api_version = 2
    return cluster


def endpoints(cluster: str, *ports: int, address: str = "127.0.0.1") -> ClusterLoadAssignment:
    assignment = ClusterLoadAssignment(cluster_name=cluster)
    group = assignment.endpoints.add()
    for port in ports:
        socket = group.lb_endpoints.add().endpoint.address.socket_address
        socket.address, socket.port_value = address, port
    return assignment


def tcp_listener(name: str, port: int, cluster: str, *, address: str = "127.0.0.1", bound: bool = True) -> Listener:
    listener = Listener(name=name)
    listener.address.socket_address.address = address
    listener.address.socket_address.port_value = port
    if not bound:
        listener.bind_to_port.value = False
        listener.traffic_direction = OUTBOUND
    chain_filter = listener.filter_chains.add().filters.add(name="envoy.filters.network.tcp_proxy")
    chain_filter.typed_config.Pack(TcpProxy(stat_prefix="t", cluster=cluster))
    return listener


def gate(port: int = 15001, address: str = "127.0.0.1") -> Listener:
    """The listener that receives redirected connections."""
    listener = tcp_listener(f"gate{port}@{address}", port, "c", address=address)
    listener.use_original_dst.value = True
    return listener


def http2_listener(name: str, port: int) -> Listener:
    """On loopback; answers every request with 200."""
    listener = tcp_listener(name, port, "none")
    manager = HttpConnectionManager(stat_prefix="t", codec_type=HttpConnectionManager.HTTP2)
    route = manager.route_config.virtual_hosts.add(name="all", domains=["*"]).routes.add()
    route.match.prefix = "/"
    route.direct_response.status = 200
    manager.http_filters.add(name="envoy.filters.http.router").typed_config.Pack(Router())
    chain_filter = listener.filter_chains[0].filters[0]
    chain_filter.name = "envoy.filters.network.http_connection_manager"
    chain_filter.typed_config.Pack(manager)
    return listener


def names(**hosts: str) -> NameTable:
    table = NameTable()
    for host, ip in hosts.items():
        table.table[f"{host}.default.mesh.internal"].ips.append(ip)
    return table
