"""The shape meshagent is compared with: one mutual-TLS connection per connection, as Istio's sidecars have it.

Two Envoys with static configuration: ``tcp_proxy`` over TLS on the client, TLS and ``tcp_proxy`` on the server, a port
per service. What Istio adds is left out, in favour of this shape: no redirect by the kernel on either side, no layer-7
filters, no telemetry. Same binary and same number of threads as meshagent's own proxy.
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

Json = dict[str, Any]

CONCURRENCY = 2
_TYPE = "type.googleapis.com/envoy.extensions"
_CLIENT_OFFSET, _SERVER_OFFSET = 20_000, 30_000


def client_port(port: int) -> int:
    """Where the client's proxy takes connections for the service at ``port``."""
    return _CLIENT_OFFSET + port


def client(server: str, ports: tuple[int, ...], pki: Path) -> Json:
    """The client's proxy: plain TCP in on loopback, TLS out to ``server``."""
    return _bootstrap(
        [_listener("127.0.0.1", client_port(port), f"to-{port}") for port in ports],
        [_cluster(f"to-{port}", server, _SERVER_OFFSET + port, _tls("Upstream", pki)) for port in ports],
    )


def server(address: str, ports: tuple[int, ...], pki: Path) -> Json:
    """The server's proxy: TLS in, a client certificate required, plain TCP to the process."""
    tls = _tls("Downstream", pki)
    return _bootstrap(
        [_listener(address, _SERVER_OFFSET + port, f"app-{port}", tls) for port in ports],
        [_cluster(f"app-{port}", "127.0.0.1", port) for port in ports],
    )


def _bootstrap(listeners: list[Json], clusters: list[Json]) -> Json:
    return {"static_resources": {"listeners": listeners, "clusters": clusters}}


def _listener(address: str, port: int, cluster: str, tls: Json | None = None) -> Json:
    proxy = {
        "@type": f"{_TYPE}.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": cluster,
        "cluster": cluster,
        "idle_timeout": "0s",
    }
    chain: Json = {"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}]}
    return {"name": cluster, "address": _address(address, port), "filter_chains": [chain | (tls or {})]}


def _cluster(name: str, address: str, port: int, tls: Json | None = None) -> Json:
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": _address(address, port)}}]}]
    unlimited = {"max_connections": 2**32 - 1, "max_pending_requests": 2**32 - 1}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": endpoints},
        "circuit_breakers": {"thresholds": [unlimited]},
        **(tls or {}),
    }


def _address(address: str, port: int) -> Json:
    return {"socket_address": {"address": address, "port_value": port}}


def _tls(side: str, pki: Path) -> Json:
    san = {"san_type": "URI", "matcher": {"prefix": "spiffe://bench/"}}
    common = {
        "alpn_protocols": ["istio"],
        "tls_certificates": [
            {
                "certificate_chain": {"filename": str(pki / "leaf.pem")},
                "private_key": {"filename": str(pki / "key.pem")},
            }
        ],
        "validation_context": {
            "trusted_ca": {"filename": str(pki / "ca.pem")},
            "match_typed_subject_alt_names": [san],
        },
    }
    context: Json = {
        "@type": f"{_TYPE}.transport_sockets.tls.v3.{side}TlsContext",
        "common_tls_context": common,
    }
    if side == "Downstream":
        context["require_client_certificate"] = True
    return {"transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": context}}


def write_pki(directory: Path) -> None:
    """``ca.pem``, and ``leaf.pem`` with ``key.pem`` for both sides; P-256, as meshagent's own."""
    now = datetime.now(UTC)
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench")])

    def build(subject: x509.Name, public: Any, constraints: x509.BasicConstraints) -> x509.CertificateBuilder:
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(name).public_key(public)
        builder = builder.serial_number(x509.random_serial_number()).add_extension(constraints, critical=True)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
        builder = builder.add_extension(issuer, critical=False)
        return builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=1))

    ca = build(name, ca_key.public_key(), x509.BasicConstraints(True, None)).sign(ca_key, hashes.SHA256())
    uri = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://bench/host")])
    leaf = build(x509.Name([]), key.public_key(), x509.BasicConstraints(False, None)).add_extension(uri, critical=True)
    (directory / "ca.pem").write_bytes(ca.public_bytes(Encoding.PEM))
    (directory / "leaf.pem").write_bytes(leaf.sign(ca_key, hashes.SHA256()).public_bytes(Encoding.PEM))
    (directory / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
