"""The HTTP connection manager with settings that leave a legacy application's requests and answers as they are.

Nothing is added for a proxy's own sake: no Server, no x-envoy-*, no X-Forwarded-For. No time-outs of ours: a direct
connection has none either, and a peer that is gone is found by HTTP/2 pings.
"""

from collections.abc import Iterable

from envoy.config.core.v3.protocol_pb2 import Http1ProtocolOptions, HttpProtocolOptions
from envoy.config.listener.v3.listener_components_pb2 import Filter
from envoy.extensions.filters.http.router.v3.router_pb2 import Router
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2 as hcm
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import BoolValue, UInt32Value

from meshagent.hub.snapshot.messages import ads, packed, seconds

#: 'The client is the N-th last address of X-Forwarded-For' with an N that no request reaches: the address of the
#: connection itself counts, whatever an application wrote into that header. (With 0 the header would decide, and the
#: source address that the application sees could be forged; use_remote_address would rewrite X-Forwarded-Proto.)
_TRUST_NO_FORWARDED_FOR = 1_000_000


def manager(stat_prefix: str, route_name: str, filters: Iterable[hcm.HttpFilter] = ()) -> hcm.HttpConnectionManager:
    """A connection manager whose routes come by RDS; ``filters`` run before the router."""
    return hcm.HttpConnectionManager(
        stat_prefix=stat_prefix,
        rds=hcm.Rds(config_source=ads(), route_config_name=route_name),
        http_filters=[*filters, http_filter("router", Router(suppress_envoy_headers=True))],
        server_header_transformation=hcm.HttpConnectionManager.PASS_THROUGH,
        skip_xff_append=True,
        xff_num_trusted_hops=_TRUST_NO_FORWARDED_FOR,
        stream_idle_timeout=seconds(0),
        proxy_100_continue=True,
        max_request_headers_kb=UInt32Value(value=96),
        common_http_protocol_options=HttpProtocolOptions(max_headers_count=UInt32Value(value=1_000)),
        upgrade_configs=[hcm.HttpConnectionManager.UpgradeConfig(upgrade_type="websocket")],
        use_remote_address=BoolValue(value=False),
    )


def http_filter(name: str, config: Message) -> hcm.HttpFilter:
    """``envoy.filters.http.<name>`` with its configuration."""
    return hcm.HttpFilter(name=f"envoy.filters.http.{name}", typed_config=packed(config))


def network_filter(name: str, config: Message) -> Filter:
    """``envoy.filters.network.<name>`` with its configuration."""
    return Filter(name=f"envoy.filters.network.{name}", typed_config=packed(config))


def title_case() -> Http1ProtocolOptions:
    """HTTP/2 carries header names in lower case; ``Content-Type`` is what old programs compare with."""
    words = Http1ProtocolOptions.HeaderKeyFormat.ProperCaseWords()
    return Http1ProtocolOptions(header_key_format=Http1ProtocolOptions.HeaderKeyFormat(proper_case_words=words))


def accepts_old_http(default_host: str) -> Http1ProtocolOptions:
    """What a client's application may speak: HTTP/1.0 and 1.1, header names in title case in answers."""
    options = title_case()
    options.accept_http_10 = True
    options.default_host_for_http_10 = default_host
    options.allow_absolute_url.CopyFrom(BoolValue(value=True))
    return options
