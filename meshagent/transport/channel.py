"""gRPC channels to the control plane, to the agent's own Unix sockets, and the calls made over them.

A channel trusts only the roots it is given and never the system's, takes no HTTP proxy from the environment, and
notices a vanished peer by HTTP/2 pings.
"""

from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from meshagent.model.address import HostPort, parse_ip
from meshagent.model.errors import ExitCode, MeshagentError
from meshagent.model.identity import Identity
from meshagent.protocol.pb.istio_ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from meshagent.protocol.pb.meshagent_v1_pb2 import EnrollRequest, EnrollResponse
from meshagent.transport.methods import (
    ANNOUNCE,
    CREATE_CERTIFICATE,
    DELTA_ADS,
    ENROLL,
    Method,
    serialize,
)

Metadata = Sequence[tuple[str, str]]

#: A hub is asked every 5 s and given 5 s to answer: half-open connections are noticed within 10 s.
#: istiod closes the connection of a client that pings more often than every 15 s.
HUB_PING_SECONDS = 5.0
ISTIOD_PING_SECONDS = 15.0
_PING_TIMEOUT_MS = 5_000

#: The biggest response: one resource over the publisher's 1 MiB portion goes alone.
MAX_MESSAGE = 16 << 20


def target(address: HostPort) -> str:
    """``address`` as gRPC names it (gRFC "Name Resolution")."""
    ip = parse_ip(address.host)
    if ip is None:
        return f"dns:///{address.host}:{address.port}"
    return f"ipv{ip.version}:{address}"


def hub_channel(
    address: HostPort,
    *,
    roots_pem: str,
    server_name: str,
    identity: Identity | None = None,
    ping_seconds: float = HUB_PING_SECONDS,
) -> grpc.aio.Channel:
    """A channel to ``address``, which must prove to be ``server_name`` under ``roots_pem``. Close it after use.

    With ``identity`` the client shows its certificate. Nothing is connected before the first call.
    """
    credentials = grpc.ssl_channel_credentials(
        root_certificates=roots_pem.encode(),
        private_key=identity.key_pem if identity else None,
        certificate_chain=identity.chain_pem.encode() if identity else None,
    )
    options = [
        ("grpc.ssl_target_name_override", server_name),
        ("grpc.default_authority", server_name),
        *_options(),
        ("grpc.keepalive_time_ms", int(ping_seconds * 1_000)),
        ("grpc.keepalive_timeout_ms", _PING_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    return grpc.aio.secure_channel(target(address), credentials, options=options)


def unix_channel(path: object) -> grpc.aio.Channel:
    """A channel to a Unix socket of this host."""
    return grpc.aio.insecure_channel(f"unix:{path}", options=[*_options(), ("grpc.default_authority", "localhost")])


def _options() -> list[tuple[str, Any]]:
    return [
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),  # a channel with a new certificate must not share the old connection
        ("grpc.enable_retries", 0),  # sessions reconnect by their own backoff
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        ("grpc.max_receive_message_length", MAX_MESSAGE),
        ("grpc.max_send_message_length", MAX_MESSAGE),
    ]


async def enroll_call(channel: grpc.aio.Channel, request: EnrollRequest, timeout: float = 15.0) -> EnrollResponse:
    """Present a token. Raises ``MeshagentError`` (the hub's own, or of the connection)."""
    response: EnrollResponse = await _unary(channel, ENROLL, request, timeout, ())
    return response


async def create_certificate_call(
    channel: grpc.aio.Channel, request: IstioCertificateRequest, timeout: float = 15.0, metadata: Metadata = ()
) -> IstioCertificateResponse:
    """Istio's CSR call; ``metadata`` may carry ``authorization: Bearer …``.

    Raises ``grpc.aio.AioRpcError``: whether to retry depends on its code.
    """
    call = channel.unary_unary(
        CREATE_CERTIFICATE.path,
        request_serializer=serialize,
        response_deserializer=CREATE_CERTIFICATE.parse_response,
    )
    response: IstioCertificateResponse = await call(request, timeout=timeout, metadata=tuple(metadata))
    return response


def announce_stream(channel: grpc.aio.Channel) -> Any:
    """A stream of ``Announcement`` out, ``AnnouncementResult`` in: ``await call.write(m)``, ``await call.read()``."""
    return _stream(channel, ANNOUNCE, ())


def delta_ads_stream(channel: grpc.aio.Channel, metadata: Metadata = (), method: Any = DELTA_ADS) -> Any:
    """A delta ADS stream: ``DeltaDiscoveryRequest`` out, ``DeltaDiscoveryResponse`` in."""
    return _stream(channel, method, metadata)


def _stream(channel: grpc.aio.Channel, method: Method[Any, Any], metadata: Metadata) -> Any:
    def parse(data: bytes) -> Any:
        """None for what is no message: gRPC would log a traceback and give None, too."""
        try:
            return method.parse_response(data)
        except DecodeError:
            return None

    call: Any = channel.stream_stream(method.path, request_serializer=serialize, response_deserializer=parse)
    return call(metadata=tuple(metadata))


async def _unary(
    channel: grpc.aio.Channel, method: Method[Any, Any], request: Any, timeout: float, metadata: Metadata
) -> Any:
    call = channel.unary_unary(method.path, request_serializer=serialize, response_deserializer=method.parse_response)
    try:
        return await call(request, timeout=timeout, metadata=tuple(metadata))
    except grpc.aio.AioRpcError as error:
        raise error_of(error) from None


def error_of(error: grpc.aio.AioRpcError) -> MeshagentError:
    """What a failed call says to a person: the other end's own error where it sent one (see grpc_server.refuse)."""
    trailing: Any = error.trailing_metadata() or ()
    sent: dict[str, str | bytes] = dict(trailing)
    code, hint, exit_code = (sent.get(f"meshagent-{key}-bin", b"") for key in ("code", "hint", "exit"))
    message = (error.details() or error.code().name)[:2_000]
    if isinstance(code, bytes) and code:
        known = {str(int(e)).encode(): e for e in ExitCode}
        return MeshagentError(
            code.decode(errors="replace"),
            message,
            hint=hint.decode(errors="replace") if isinstance(hint, bytes) else "",
            exit_code=known.get(exit_code if isinstance(exit_code, bytes) else b"", ExitCode.FAILED),
        )
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return MeshagentError("hub-unreachable", f"the hub cannot be reached: {message}", hint="does the hub run?")
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return MeshagentError("hub-slow", "the hub did not answer in time", hint="try again; see the hub's log")
    return MeshagentError("hub-refused", f"the hub refused: {message}", hint="try again; see the hub's log")
