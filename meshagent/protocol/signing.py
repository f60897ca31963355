"""What is signed with a host key, byte for byte: transcripts that cannot be mistaken for one another.

A transcript is a purpose (what the signature is for) and its fields, each with its length in front: no two different
lists of fields give the same bytes, and a signature for one purpose is none for another.
Keys: Ed25519 (RFC 8032), or ECDSA over P-256 with SHA-256.
"""

import hashlib
from collections.abc import Iterable

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from meshagent.model.errors import MeshagentError

HostPrivateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey

_ENROL = b"meshagent/v1/enrol"
_MAX_KEY_PEM = 4_096


def transcript(purpose: bytes, fields: Iterable[bytes]) -> bytes:
    """``purpose`` and ``fields``, each prefixed by its length as 4 bytes, big-endian."""
    return b"".join(len(part).to_bytes(4, "big") + part for part in (purpose, *fields))


def enrolment_transcript(*, ca_hash: str, token_id: str, csr_pem: str, host_key_pem: str) -> bytes:
    """What a host signs to enrol: this root, this token, this CSR, this host key. ``ca_hash`` as in the token.

    The CSR goes in as SHA-256 of its PEM text exactly as sent; likewise the key.
    """
    return transcript(_ENROL, (ca_hash.encode(), token_id.encode(), _digest(csr_pem), _digest(host_key_pem)))


def new_host_key() -> HostPrivateKey:
    """A fresh Ed25519 host key."""
    return ed25519.Ed25519PrivateKey.generate()


def public_pem(key: HostPrivateKey) -> str:
    """The key's SubjectPublicKeyInfo as PEM: ``EnrollRequest.host_key_pem``."""
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(encoding, form).decode()


def sign(key: HostPrivateKey, message: bytes) -> bytes:
    """Sign with a host key."""
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(message)
    return key.sign(message, ec.ECDSA(hashes.SHA256()))


def verify(host_key_pem: str, signature: bytes, message: bytes) -> None:
    """Raise ``MeshagentError`` (``bad-host-key`` or ``bad-signature``) unless the key's owner signed ``message``."""
    key = load_public(host_key_pem)
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, message)
        else:
            key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise MeshagentError("bad-signature", "the request is not signed by its host key") from None


def load_public(host_key_pem: str) -> ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey:
    """The public host key; ``MeshagentError`` (``bad-host-key``) unless it is Ed25519 or P-256."""
    try:
        if len(host_key_pem) > _MAX_KEY_PEM:
            raise ValueError
        key = serialization.load_pem_public_key(host_key_pem.encode())
    except Exception:  # ValueError, UnsupportedAlgorithm and whatever the parser thinks of next
        raise MeshagentError("bad-host-key", "the host key cannot be read") from None
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    raise MeshagentError("bad-host-key", "the host key is neither Ed25519 nor P-256")


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
