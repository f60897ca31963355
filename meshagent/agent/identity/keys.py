"""Keys are born here and never leave: the long-lived host key, the workload keys, and the CSR that goes out.

The host key proves possession when a host comes back; only ``sign`` is asked of it, so that a TPM may hold it later.
A workload key is new at every rotation.
"""

from enum import StrEnum

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from meshagent.model.errors import MeshagentError
from meshagent.model.identity import SpiffeId
from meshagent.protocol import signing

WorkloadPrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


class HostKeyKind(StrEnum):
    """Kinds of the long-lived host key."""

    ED25519 = "ed25519"
    P256 = "p256"


class WorkloadKeyKind(StrEnum):
    """Kinds of workload keys; P-256 signs ten times faster than RSA 2048 in a handshake."""

    P256 = "p256"
    P384 = "p384"
    RSA2048 = "rsa2048"
    RSA3072 = "rsa3072"
    RSA4096 = "rsa4096"


class HostKey:
    """A host key held in memory, for whoever has to sign with it. Its ``repr`` shows nothing of it."""

    def __init__(self, key: signing.HostPrivateKey) -> None:
        self._key = key

    @property
    def public_pem(self) -> str:
        """SubjectPublicKeyInfo, PEM."""
        return signing.public_pem(self._key)

    def private_pem(self) -> bytes:
        """PKCS#8 without a passphrase, for the keystore only."""
        return _private_pem(self._key)

    def sign(self, data: bytes) -> bytes:
        """Ed25519 (RFC 8032), or ECDSA over SHA-256 in DER for a P-256 key."""
        return signing.sign(self._key, data)


def generate_host_key(kind: HostKeyKind = HostKeyKind.ED25519) -> HostKey:
    """A new host key."""
    if kind is HostKeyKind.ED25519:
        return HostKey(signing.new_host_key())
    return HostKey(ec.generate_private_key(ec.SECP256R1()))


def load_host_key(pem: bytes) -> HostKey:
    """The host key of ``private_pem``; raises ``MeshagentError`` ``host-key-damaged``."""
    key = _load_private(pem, "host-key-damaged", "the host key")
    is_p256 = isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1)
    if isinstance(key, ed25519.Ed25519PrivateKey) or (isinstance(key, ec.EllipticCurvePrivateKey) and is_p256):
        return HostKey(key)
    raise MeshagentError("host-key-damaged", "the host key is of a kind that is not used here", hint=_RENEW_HINT)


def generate_workload_key(kind: WorkloadKeyKind = WorkloadKeyKind.P256) -> bytes:
    """A new workload key as PKCS#8 PEM."""
    if kind is WorkloadKeyKind.P256:
        return _private_pem(ec.generate_private_key(ec.SECP256R1()))
    if kind is WorkloadKeyKind.P384:
        return _private_pem(ec.generate_private_key(ec.SECP384R1()))
    return _private_pem(rsa.generate_private_key(public_exponent=65537, key_size=int(kind.removeprefix("rsa"))))


def load_workload_key(pem: bytes) -> WorkloadPrivateKey:
    """The key of a workload set; raises ``MeshagentError`` ``identity-damaged``."""
    key = _load_private(pem, "identity-damaged", "the workload key")
    if isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        return key
    raise MeshagentError("identity-damaged", "the workload key is neither ECDSA nor RSA", hint=_RENEW_HINT)


def build_csr(key_pem: bytes, spiffe_id: SpiffeId | None) -> str:
    """PKCS#10 PEM with an empty subject and the identity as one critical URI SAN (SPIFFE X.509-SVID section 4.1).

    None at enrolment: only the hub knows which identity the token stands for.
    """
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if spiffe_id is not None:
        san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(spiffe_id))])
        request = request.add_extension(san, critical=True)
    return request.sign(load_workload_key(key_pem), hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


_RENEW_HINT = "restore it from a backup, or leave the mesh and enrol again"


def _private_pem(key: WorkloadPrivateKey | signing.HostPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _load_private(pem: bytes, code: str, what: str) -> object:
    try:
        return serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise MeshagentError(code, f"{what} can't be read", hint=_RENEW_HINT) from error
