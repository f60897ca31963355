"""TLS between proxies: keys and roots by SDS, identities matched exactly.

Between hosts of ours 1.3 only, and no SNI: the service asked for is inside the encrypted stream, an observer learns the
two hosts and no more. With Istio's sidecars, on the service's own port, as they do it: 1.2 is taken too, and SNI and
ALPN say what is wanted. Key exchange and ciphers stay BoringSSL's defaults (X25519MLKEM768, AES-128-GCM).
"""

from collections.abc import Iterable

from envoy.config.core.v3.base_pb2 import TransportSocket
from envoy.extensions.transport_sockets.tls.v3.common_pb2 import (
    CertificateValidationContext,
    SubjectAltNameMatcher,
    TlsParameters,
)
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import SdsSecretConfig
from envoy.extensions.transport_sockets.tls.v3.tls_pb2 import (
    CommonTlsContext,
    DownstreamTlsContext,
    UpstreamTlsContext,
)
from envoy.type.matcher.v3.string_pb2 import StringMatcher
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import BoolValue, UInt32Value

from meshagent.hub.snapshot.messages import packed, sds
from meshagent.model.service import ServiceProtocol

#: TLS sessions kept per cluster; with Envoy's default of 1 only 14 % of handshakes resumed, with 64 it was 99 %.
SESSION_KEYS = 64


#: What a sidecar's server tells mutual TLS of the mesh by (Istio's names). A client offers the one that says what it
#: speaks inside.
MESH_ALPN = ("istio", "istio-peer-exchange", "istio-http/1.0", "istio-http/1.1", "istio-h2")

#: What our server picks of a peer's offers. Never istio-peer-exchange: a sidecar then puts frames of its own before
#: the application's first byte. HTTP connections offer these two beside; the codec goes by what is picked.
_PICKS_TCP, _PICKS_HTTP = ("istio",), ("h2", "http/1.1")


def client_socket(accounts: Iterable[str], trust_domain: str) -> TransportSocket:
    """Towards a service: the peer must present exactly one of ``accounts`` (SPIFFE IDs).

    Without any account nothing matches: a cluster never falls back to 'anyone whom our root has signed'.
    """
    return _client(_common(_exactly(accounts, trust_domain)))


def sidecar_client_socket(
    accounts: Iterable[str], trust_domain: str, sni: str, protocol: ServiceProtocol
) -> TransportSocket:
    """Towards a sidecar on the service's own port; identities as with ``client_socket``."""
    alpn = "istio" if not protocol.is_http else "istio-http/1.1" if protocol is ServiceProtocol.HTTP else "istio-h2"
    return _client(_common(_exactly(accounts, trust_domain), (alpn,), TlsParameters.TLSv1_2), sni)


def server_socket(trust_domain: str) -> TransportSocket:
    """From a peer: a client certificate of this trust domain is required; policy decides who may do what."""
    return _server(_common(_members(trust_domain)))


def sidecar_server_socket(trust_domain: str, *, http: bool) -> TransportSocket:
    """As ``server_socket``, for peers that call the service's own port as Istio's sidecars do."""
    picks = _PICKS_HTTP if http else _PICKS_TCP
    return _server(_common(_members(trust_domain), picks, TlsParameters.TLSv1_2))


def _client(common: CommonTlsContext, sni: str = "") -> TransportSocket:
    keys = UInt32Value(value=SESSION_KEYS)
    return _socket(UpstreamTlsContext(common_tls_context=common, sni=sni, max_session_keys=keys))


def _server(common: CommonTlsContext) -> TransportSocket:
    return _socket(DownstreamTlsContext(common_tls_context=common, require_client_certificate=BoolValue(value=True)))


def _exactly(accounts: Iterable[str], trust_domain: str) -> list[SubjectAltNameMatcher]:
    wanted = sorted(set(accounts)) or [f"spiffe://{trust_domain}/no-account-is-known"]
    return [_uri(StringMatcher(exact=account)) for account in wanted]


def _members(trust_domain: str) -> list[SubjectAltNameMatcher]:
    return [_uri(StringMatcher(prefix=f"spiffe://{trust_domain}/"))]


def _common(
    matchers: list[SubjectAltNameMatcher],
    alpn: Iterable[str] = ("h2",),
    oldest: TlsParameters.TlsProtocol = TlsParameters.TLSv1_3,
) -> CommonTlsContext:
    return CommonTlsContext(
        tls_params=TlsParameters(
            tls_minimum_protocol_version=oldest, tls_maximum_protocol_version=TlsParameters.TLSv1_3
        ),
        alpn_protocols=alpn,
        tls_certificate_sds_secret_configs=[SdsSecretConfig(name="default", sds_config=sds())],
        combined_validation_context=CommonTlsContext.CombinedCertificateValidationContext(
            default_validation_context=CertificateValidationContext(match_typed_subject_alt_names=matchers),
            validation_context_sds_secret_config=SdsSecretConfig(name="ROOTCA", sds_config=sds()),
        ),
    )


def _uri(matcher: StringMatcher) -> SubjectAltNameMatcher:
    return SubjectAltNameMatcher(san_type=SubjectAltNameMatcher.URI, matcher=matcher)


def _socket(context: Message) -> TransportSocket:
    return TransportSocket(name="envoy.transport_sockets.tls", typed_config=packed(context))
