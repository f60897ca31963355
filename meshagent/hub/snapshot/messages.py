"""Small helpers around Envoy's messages: packing, durations, references to ADS and SDS, entries.

Serialisation is deterministic, so that the version (a hash of the bytes) changes exactly when the content does.
"""

from hashlib import sha256

from envoy.config.core.v3.address_pb2 import Address, SocketAddress
from envoy.config.core.v3.config_source_pb2 import AggregatedConfigSource, ApiConfigSource, ApiVersion, ConfigSource
from envoy.config.core.v3.grpc_service_pb2 import GrpcService
from envoy.config.core.v3.socket_option_pb2 import SocketOption
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from meshagent.model.address import IPAddress
from meshagent.protocol.entry import Entry

#: Linux: setsockopt(fd, SOL_SOCKET, SO_MARK, …), socket(7).
_SOL_SOCKET, _SO_MARK = 1, 36


def packed(message: Message) -> Any:
    """``message`` as an Any with the usual type URL."""
    wrapped = Any()
    wrapped.Pack(message, deterministic=True)
    return wrapped


def entry(message: Message) -> Entry:
    """``message`` serialised once; its version is 64 bits of the SHA-256 of the bytes, in hex."""
    body: bytes = message.SerializeToString(deterministic=True)
    return Entry(sha256(body).hexdigest()[:16], body)


def seconds(value: float) -> Duration:
    """A Duration of ``value`` seconds, exact to the millisecond."""
    whole, millis = divmod(round(value * 1_000), 1_000)
    return Duration(seconds=whole, nanos=millis * 1_000_000)


def ads() -> ConfigSource:
    """'Ask on the stream you already have'."""
    return ConfigSource(ads=AggregatedConfigSource(), resource_api_version=ApiVersion.V3)


def sds() -> ConfigSource:
    """Secrets come from the agent's own socket. No fetch time-out: what needs a key waits, it never goes without."""
    return ConfigSource(
        resource_api_version=ApiVersion.V3,
        initial_fetch_timeout=seconds(0),
        api_config_source=ApiConfigSource(
            api_type=ApiConfigSource.DELTA_GRPC,
            transport_api_version=ApiVersion.V3,
            set_node_on_first_message_only=True,
            grpc_services=[GrpcService(envoy_grpc=GrpcService.EnvoyGrpc(cluster_name="sds-grpc"))],
        ),
    )


def socket_address(ip: IPAddress | str, port: int) -> Address:
    """A TCP address as Envoy writes it."""
    return Address(socket_address=SocketAddress(address=str(ip), port_value=port))


def mark_option(mark: int) -> SocketOption:
    """SO_MARK on an upstream socket before it is bound; the proxy needs CAP_NET_ADMIN (or CAP_NET_RAW since 5.17)."""
    return SocketOption(
        description="SO_MARK", level=_SOL_SOCKET, name=_SO_MARK, int_value=mark, state=SocketOption.STATE_PREBIND
    )
