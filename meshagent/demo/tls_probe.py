"""Who answers there, read from a TLS session: connects with the identity of a root and prints the peer's SPIFFE ID.

Run on a host of the mesh: ``python -m meshagent.demo.tls_probe ROOT ADDRESS [PORT]``. The session is a real one, made
like Envoy makes them: mutual TLS 1.3, ALPN h2, the peer's chain verified against the host's own trust bundle.
"""

import os
import socket
import ssl
import sys
from pathlib import Path

from cryptography import x509

from meshagent.agent.identity.keystore import Keystore
from meshagent.model.identity import Identity
from meshagent.model.paths import Paths
from meshagent.model.ports import HBONE


def peer_identity(identity: Identity, address: str, port: int) -> str:
    """The URI SAN that the peer proved to own. Raises ``OSError`` (``ssl.SSLError``) when it proves nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # SPIFFE peers are known by their URI SAN, read below
    context.set_alpn_protocols(["h2"])
    context.load_verify_locations(cadata=identity.bundle_pem)
    _load_key(context, identity)
    with socket.create_connection((address, port), 5) as raw, context.wrap_socket(raw) as session:
        certificate = x509.load_der_x509_certificate(session.getpeercert(True) or b"")
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return str(names.get_values_for_type(x509.UniformResourceIdentifier)[0])


def _load_key(context: ssl.SSLContext, identity: Identity) -> None:
    """ssl takes keys from files only; this one lives in memory."""
    descriptor = os.memfd_create("identity", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, identity.key_pem + identity.chain_pem.encode())
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def main(root: str, address: str, port: str = str(HBONE)) -> None:
    """Print the peer's SPIFFE ID."""
    identity = Keystore(Paths(Path(root)).state).load_identity()
    assert identity is not None, "this root is not enrolled"
    print(peer_identity(identity, address, int(port)))


if __name__ == "__main__":
    main(*sys.argv[1:])
