"""Look at a hub before trusting it: one TLS handshake in which nothing but the handshake is sent.

The hub sends its whole chain with its root last. The root must have the public key the token pins, be a CA, and carry
the trust domain (URI SAN ``spiffe://<trust domain>``); the leaf must be issued by it (over intermediates), valid now,
and named ``hub.<trust domain>`` whatever address was typed. Only then does anyone open gRPC, trusting that root under
that name.
"""

import asyncio
import contextlib
import itertools
import secrets
import socket
import ssl
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from meshagent.model.address import HostPort
from meshagent.model.errors import MeshagentError
from meshagent.model.names import is_dns_name
from meshagent.protocol.enrol import spki_hash

_MAX_CHAIN = 10
_CLOCK_HINT = "compare the clocks of this host and of the hub (timedatectl), then try again"


@dataclass(frozen=True, slots=True)
class PinnedHub:
    """A hub that was looked at: trust only ``root_pem``, under ``server_name``."""

    root_pem: str
    server_name: str
    trust_domain: str


async def look_at_hub(address: HostPort, ca_hash: str, timeout: float = 10.0) -> PinnedHub:
    """``pinned_hub`` without blocking the event loop."""
    return await asyncio.to_thread(pinned_hub, address, ca_hash, timeout)


def pinned_hub(address: HostPort, ca_hash: str, timeout: float = 10.0) -> PinnedHub:
    """Handshake with ``address`` and check what it shows against ``ca_hash``. Blocks at most about 2 x ``timeout``.

    Raises ``MeshagentError`` (exit 1): ``hub-unreachable``, ``hub-no-tls``, ``wrong-ca``, ``hub-not-ca``,
    ``hub-bad-chain``, ``hub-clock``, ``hub-wrong-name``. Nothing was sent but the TLS handshake.
    """
    return check_chain(peer_chain(address, timeout), ca_hash, datetime.now(UTC), str(address))


def peer_chain(address: HostPort, timeout: float) -> list[bytes]:
    """The certificates (DER, leaf first) that a server shows, none of them verified; the connection is closed again."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # check_chain judges what is seen here; nothing is sent over this connection
    context.set_alpn_protocols(["h2"])
    with _connect(address, timeout) as raw:
        try:
            with context.wrap_socket(raw) as connection:
                return _unverified_chain(connection)
        except TimeoutError:
            raise _unreachable(address, "it does not answer the TLS handshake in time") from None
        except (ssl.SSLError, OSError) as error:
            reason = getattr(error, "reason", None) or error.strerror or type(error).__name__
            raise MeshagentError(
                "hub-no-tls",
                f"{address} does not speak TLS as a hub does ({reason})",
                hint="is this the hub's address and port? The default port is 15012",
            ) from None


def _connect(address: HostPort, timeout: float) -> socket.socket:
    try:
        return socket.create_connection((address.host, address.port), timeout)
    except TimeoutError:
        raise _unreachable(address, "no answer") from None
    except (OSError, UnicodeError) as error:
        raise _unreachable(address, getattr(error, "strerror", None) or str(error)) from None


def _unreachable(address: HostPort, why: str) -> MeshagentError:
    return MeshagentError(
        "hub-unreachable",
        f"the hub at {address} cannot be reached: {why}",
        hint="check the address, that the hub runs, and that no firewall is in between",
    )


def _unverified_chain(connection: ssl.SSLSocket) -> list[bytes]:
    """The one place that depends on the Python version: 3.13 made the method public and returns DER."""
    if sys.version_info >= (3, 13):
        return list(connection.get_unverified_chain())
    chain = connection._sslobj.get_unverified_chain()  # type: ignore[attr-defined]
    return [certificate.public_bytes(ssl._ssl.ENCODING_DER) for certificate in chain or ()]  # type: ignore[attr-defined]


def check_chain(chain: Sequence[bytes], ca_hash: str, now: datetime, where: str = "the hub") -> PinnedHub:
    """Judge a chain (DER, leaf first, root last) as ``pinned_hub`` does. ``now`` is aware UTC."""
    root = _pinned_root(chain, ca_hash, where)
    try:
        certificates = [x509.load_der_x509_certificate(der) for der in chain]
        trust_domain = _trust_domain(root)
        _check_path(certificates, now)
        _check_leaf(certificates[0], f"hub.{trust_domain}", where)
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension, TypeError):
        raise _bad_chain("one of its certificates cannot be read or lacks what it needs") from None
    return PinnedHub(root.public_bytes(Encoding.PEM).decode(), f"hub.{trust_domain}", trust_domain)


def _pinned_root(chain: Sequence[bytes], ca_hash: str, where: str) -> x509.Certificate:
    """The last certificate, if it is the one the token pins and a CA."""
    try:
        matches = 0 < len(chain) <= _MAX_CHAIN and secrets.compare_digest(spki_hash(chain[-1]), ca_hash)
        root = x509.load_der_x509_certificate(chain[-1]) if matches else None
    except (ValueError, TypeError):
        root = None
    if root is None:
        raise MeshagentError(
            "wrong-ca",
            f"{where} is not the hub this token is for: its CA is not the one pinned in the token; nothing was sent",
            hint="check the address; if it is right, someone may be in between, or the token is another hub's",
        )
    with contextlib.suppress(x509.ExtensionNotFound, ValueError):
        if len(chain) > 1 and root.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return root
    raise MeshagentError("hub-not-ca", f"what {where} shows as its root is not a certificate authority")


def _trust_domain(root: x509.Certificate) -> str:
    names = root.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1 or not uris[0].startswith("spiffe://") or not is_dns_name(uris[0].removeprefix("spiffe://")):
        raise _bad_chain("its root names no trust domain")
    return uris[0].removeprefix("spiffe://")


def _check_path(certificates: Sequence[x509.Certificate], now: datetime) -> None:
    """Every certificate valid now and issued by the next, each issuer a CA (RFC 5280 section 6, without policies)."""
    for certificate in certificates:
        if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
            state = "not valid yet" if now < certificate.not_valid_before_utc else "expired"
            raise MeshagentError(
                "hub-clock", f"by this host's clock the hub's certificate is {state}", hint=_CLOCK_HINT
            )
    for depth, (certificate, issuer) in enumerate(itertools.pairwise(certificates)):
        constraints = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = issuer.extensions.get_extension_for_class(x509.KeyUsage).value
        too_deep = constraints.path_length is not None and constraints.path_length < depth
        if not constraints.ca or not usage.key_cert_sign or too_deep:
            raise _bad_chain("one of its issuers may not issue certificates")
        try:
            certificate.verify_directly_issued_by(issuer)
        except InvalidSignature:
            raise _bad_chain("its certificate was not issued by its root") from None


def _check_leaf(leaf: x509.Certificate, server_name: str, where: str) -> None:
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    if ExtendedKeyUsageOID.SERVER_AUTH not in usage or server_name not in names.get_values_for_type(x509.DNSName):
        raise MeshagentError(
            "hub-wrong-name",
            f"{where} belongs to the mesh but is not its hub: its certificate is not for {server_name}",
            hint="check the address: an enrolled host may be answering in the hub's place",
        )


def _bad_chain(why: str) -> MeshagentError:
    return MeshagentError("hub-bad-chain", f"the hub's certificates are not usable: {why}", hint="see the hub's log")
