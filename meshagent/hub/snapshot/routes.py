"""Routes: from a client's request to the service's cluster, and from what a peer asked for to the process.

The two ends meet in the service's authority ``<host>:<port>``: a tunnel carries it as CONNECT authority, an HTTP
request in a header that the client's proxy sets and the server's proxy removes. Both are matched exactly; a host
answers only for what it has announced. HTTP services offer no CONNECT: a peer could send an XFCC of its own through it.
"""

from collections.abc import Iterable

from envoy.config.core.v3.base_pb2 import DataSource, HeaderValue, HeaderValueOption
from envoy.config.core.v3.substitution_format_string_pb2 import SubstitutionFormatString
from envoy.config.rbac.v3 import rbac_pb2 as rules
from envoy.config.rbac.v3.rbac_pb2 import Permission, Policy, Principal
from envoy.config.route.v3.route_components_pb2 import (
    FilterConfig,
    HeaderMatcher,
    RetryPolicy,
    Route,
    RouteAction,
    RouteMatch,
    VirtualHost,
)
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from envoy.extensions.filters.common.set_filter_state.v3.value_pb2 import FilterStateValue
from envoy.extensions.filters.http.rbac.v3.rbac_pb2 import RBAC, RBACPerRoute
from envoy.extensions.filters.http.set_filter_state.v3.set_filter_state_pb2 import Config as SetFilterState
from envoy.extensions.retry.host.previous_hosts.v3.previous_hosts_pb2 import PreviousHostsPredicate
from envoy.type.matcher.v3.string_pb2 import StringMatcher
from google.protobuf.any_pb2 import Any
from google.protobuf.wrappers_pb2 import UInt32Value

from meshagent.hub.snapshot import naming
from meshagent.hub.snapshot.clusters import tunnelled
from meshagent.hub.snapshot.messages import packed, seconds
from meshagent.hub.snapshot.view import Inbound, Target
from meshagent.hub.state import MeshPort, MeshService

#: Filter state that an ORIGINAL_DST cluster takes its destination from.
_DESTINATION = "envoy.network.transport_socket.original_dst_address"

#: What may be tried on another endpoint: nothing of the request has reached an application.
_SAFE_TO_RETRY = "connect-failure,refused-stream,retriable-headers"

# client side


def outbound(service: MeshService, port: MeshPort) -> RouteConfiguration:
    """Every request on an HTTP service's listeners goes to the service's cluster."""
    name = naming.http_route(service.host, port.number)
    route = Route(match=RouteMatch(prefix=""), route=_to_cluster(naming.outbound(service.host, port.number)))
    if tunnelled(service):
        route.route.retry_policy.CopyFrom(_retries())
        route.request_headers_to_add.add(
            header=HeaderValue(key=naming.SERVICE_HEADER, value=naming.authority(service.host, port.number)),
            append_action=HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
        )
        route.response_headers_to_remove.append(naming.UNREACHED_HEADER)
    return _routes(name, [route])


def _to_cluster(cluster: str) -> RouteAction:
    return RouteAction(cluster=cluster, timeout=seconds(0))


def _retries() -> RetryPolicy:
    predicate = RetryPolicy.RetryHostPredicate(
        name="envoy.retry_host_predicates.previous_hosts", typed_config=packed(PreviousHostsPredicate())
    )
    return RetryPolicy(
        retry_on=_SAFE_TO_RETRY,
        num_retries=UInt32Value(value=3),
        retriable_headers=[HeaderMatcher(name=naming.UNREACHED_HEADER, present_match=True)],
        retry_host_predicate=[predicate],
        host_selection_retry_max_attempts=3,
        retry_back_off=RetryPolicy.RetryBackOff(base_interval=seconds(0.01), max_interval=seconds(0.1)),
    )


# server side


def hbone(family: int, served: Iterable[Inbound], trust_domain: str) -> RouteConfiguration:
    """What callers of one family may ask this host for; everything else is refused."""
    ways = ((each, each.target(family)) for each in served)
    routes = [_inbound(family, each, target, trust_domain) for each, target in ways if target]
    return _routes(naming.HBONE if family == 4 else naming.HBONE6, routes)


def _inbound(family: int, served: Inbound, target: Target, trust_domain: str) -> Route:
    wanted = StringMatcher(exact=naming.authority(served.host, served.port))
    action = _to_cluster(naming.inbound(served.host, served.port, target.variant))
    if served.protocol.is_http:
        match = RouteMatch(prefix="", headers=[HeaderMatcher(name=naming.SERVICE_HEADER, string_match=wanted)])
    else:
        tunnel = RouteMatch.ConnectMatcher()
        match = RouteMatch(connect_matcher=tunnel, headers=[HeaderMatcher(name=":authority", string_match=wanted)])
        connect = RouteAction.UpgradeConfig.ConnectConfig()
        action.upgrade_configs.add(upgrade_type="CONNECT", connect_config=connect)
    route = Route(match=match, route=action, request_headers_to_remove=[naming.SERVICE_HEADER])
    for name, config in _per_route(family, served, target, trust_domain).items():
        route.typed_per_filter_config[f"envoy.filters.http.{name}"].CopyFrom(config)
    return route


def _per_route(family: int, served: Inbound, target: Target, trust_domain: str) -> dict[str, Any]:
    configs = {"rbac": packed(_members_of(trust_domain))}
    if target.address is None:
        configs["set_filter_state"] = packed(_dialled_address(family, served.target_port))
    if target.source is not None:
        configs["original_src"] = packed(FilterConfig(disabled=True))
    return configs


def _members_of(trust_domain: str) -> RBACPerRoute:
    """Whoever has an identity of this trust domain."""
    name = StringMatcher(prefix=f"spiffe://{trust_domain}/")
    principal = Principal(authenticated=Principal.Authenticated(principal_name=name))
    policy = Policy(permissions=[Permission(any=True)], principals=[principal])
    return RBACPerRoute(rbac=RBAC(rules=rules.RBAC(action=rules.RBAC.ALLOW, policies={"trust-domain": policy})))


def _dialled_address(family: int, port: int) -> SetFilterState:
    """The process listens on any address: take the one the peer dialled, right behind NAT and with several NICs."""
    ip = "%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%"
    text = f"{ip}:{port}" if family == 4 else f"[{ip}]:{port}"
    value = FilterStateValue(
        object_key=_DESTINATION,
        format_string=SubstitutionFormatString(text_format_source=DataSource(inline_string=text)),
    )
    return SetFilterState(on_request_headers=[value])


def _routes(name: str, routes: Iterable[Route]) -> RouteConfiguration:
    return RouteConfiguration(name=name, virtual_hosts=[VirtualHost(name=name, domains=["*"], routes=routes)])
