"""What Envoy is told on its first day: who it is and where its two sockets are; everything else comes over xDS.

No keys and no certificates are in here (error texts of Envoy may quote the whole configuration), no TCP port is opened,
and the admin interface is a socket that only root and the proxy's own user can open.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meshagent.model import stats
from meshagent.model.doors import INBOUND_PASSTHROUGH_CLUSTERS, PASSTHROUGH_CLUSTER
from meshagent.model.marks import PROXY_MARK

Json = dict[str, Any]

XDS_CLUSTER = "xds-grpc"
SDS_CLUSTER = "sds-grpc"

#: asm-generic/socket.h
SOL_SOCKET = 1
SO_MARK = 36

_TYPE = "type.googleapis.com/"

#: What is counted: whole words of a name at its beginning, and nothing else. Those Envoy (1.40.0) tells without writing
#: a name out; one suffix or pattern among them makes it write out each of the 100,000 that a start with 1,000 services
#: comes by, 0.3 s. A name that is here to its end is a prefix, too.
STAT_PREFIXES = (
    "server",
    "listener_manager",
    "cluster_manager",
    "control_plane",
    "sds",
    "overload",
    *(f"cluster.{name}" for name in (PASSTHROUGH_CLUSTER, *INBOUND_PASSTHROUGH_CLUSTERS)),
    *(f"{kind}.{stats.INBOUND}" for kind in ("listener", "http")),
    *(f"{kind}.{name}" for kind in ("tcp", "http") for name in stats.SORTED),
    *(f"listener.{stats.OUTBOUND}.{name}" for name in ("downstream_cx_total", "downstream_cx_active")),
    *(f"http.{stats.OUTBOUND}.{name}" for name in ("downstream_rq_total", "downstream_rq_active", "downstream_rq_5xx")),
)


@dataclass(frozen=True, slots=True)
class ProxyNode:
    """Who this proxy says it is (xDS ``Node``); ``metadata`` as JSON, booleans as strings (Istio's habit)."""

    id: str
    cluster: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sockets:
    """Unix sockets: ours that Envoy connects to, and the one on which Envoy serves its admin interface.

    ``farewell``: a file that holds ``0``, and ``1`` once idle connections should go.
    """

    xds: Path
    sds: Path
    admin: Path
    farewell: Path


def render(node: ProxyNode, sockets: Sockets, heap: int) -> Json:
    """The bootstrap (``envoy.config.bootstrap.v3.Bootstrap``) as a JSON object; ``heap``: bytes the proxy may use."""
    return {
        "node": {"id": node.id, "cluster": node.cluster, "metadata": dict(node.metadata)},
        "admin": {"address": {"pipe": {"path": str(sockets.admin), "mode": 0o600}}},
        "dynamic_resources": _dynamic_resources(),
        "static_resources": {
            "clusters": [_agent_cluster(XDS_CLUSTER, sockets.xds), _agent_cluster(SDS_CLUSTER, sockets.sds)]
        },
        "cluster_manager": {"upstream_bind_config": {"socket_options": [_mark()]}},
        "overload_manager": _overload_manager(heap, sockets.farewell),
        # Each flush of an epoch asks the one before for its numbers and waits for the answer: not before it has been
        # told to end and is asked no more (launch.PARENT_SECONDS). Gauges of listeners are live in any case.
        "stats_flush_interval": "60s",
        "stats_config": {"stats_matcher": {"inclusion_list": {"patterns": _stat_patterns()}}},
        # A cluster's numbers come into being with its first connection: 1,000 services are mostly never used by a host.
        "deferred_stat_options": {"enable_deferred_creation_stats": True},
    }


def _dynamic_resources() -> Json:
    """Delta ADS. A fetch timeout of 0: Envoy is not LIVE before the first clusters and listeners are there."""
    source = {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"}
    return {
        "ads_config": {
            "api_type": "DELTA_GRPC",
            "transport_api_version": "V3",
            "set_node_on_first_message_only": True,
            "grpc_services": [{"envoy_grpc": {"cluster_name": XDS_CLUSTER, "retry_policy": _reconnect()}}],
        },
        "cds_config": source,
        "lds_config": source,
    }


def _reconnect() -> Json:
    """Envoy's default backs off to 30 s; the agent is on this host, serves 0.2 s after it started an Envoy, and is back
    within a second after an upgrade. While it is away, a look every 50 ms at a socket that isn't there."""
    return {"retry_back_off": {"base_interval": "0.025s", "max_interval": "0.1s"}}


def _agent_cluster(name: str, socket: Path) -> Json:
    """A server of the agent on a Unix socket, HTTP/2 without TLS."""
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": str(socket)}}}}]}],
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{_TYPE}envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
    }


#: Share of the heap -> what happens. Freed pages go back first, then idle connections go sooner, then nothing new is
#: taken: a connection that waits in the kernel costs nothing, a proxy that the kernel kills costs all of them.
OVERLOAD_ACTIONS = (
    ("shrink_heap", 0.80),
    ("disable_http_keepalive", 0.90),
    ("stop_accepting_requests", 0.95),
    ("stop_accepting_connections", 0.97),
)


def _overload_manager(heap: int, farewell: Path) -> Json:
    name = "envoy.resource_monitors.fixed_heap"
    config = {
        "@type": f"{_TYPE}envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig",
        "max_heap_size_bytes": heap,
    }
    return {
        "refresh_interval": "0.25s",
        "resource_monitors": [{"name": name, "typed_config": config}, _farewell(farewell)],
        "actions": [
            _let_idle_ones_go(),
            *(_action(action, name, share) for action, share in OVERLOAD_ACTIONS),
        ],
    }


def _action(action: str, monitor: str, share: float) -> Json:
    trigger = {"name": monitor, "threshold": {"value": share}}
    return {"name": f"envoy.overload_actions.{action}", "triggers": [trigger]}


_FAREWELL = "envoy.resource_monitors.injected_resource"


def _farewell(file: Path) -> Json:
    config = {
        "@type": f"{_TYPE}envoy.extensions.resource_monitors.injected_resource.v3.InjectedResourceConfig",
        "filename": str(file),
    }
    return {"name": _FAREWELL, "typed_config": config}


def _let_idle_ones_go() -> Json:
    """Draining alone tells only who asks next; an idle HTTP/2 connection hears GOAWAY when its idle time is over, so
    that time becomes a second (1.40.0: GOAWAY within 0.5 s of it, closed 6 s later, nothing for it without this)."""
    factors = [{"timer": "HTTP_DOWNSTREAM_CONNECTION_IDLE", "min_timeout": "1s"}]
    return {
        **_action("reduce_timeouts", _FAREWELL, 0.9),
        "typed_config": {
            "@type": f"{_TYPE}envoy.config.overload.v3.ScaleTimersOverloadActionConfig",
            "timer_scale_factors": factors,
        },
    }


def _mark() -> Json:
    """On every upstream socket: the kernel tells the proxy's packets by it, also after Envoy closed the socket."""
    return {"level": SOL_SOCKET, "name": SO_MARK, "int_value": PROXY_MARK, "state": "STATE_PREBIND"}


def _stat_patterns() -> list[Json]:
    return [{"prefix": f"{prefix}."} for prefix in STAT_PREFIXES]
