"""The enrolment token: one string that pins the hub's root and is worth one enrolment.

``ma1.<ca hash>.<id>.<secret>``. The hash pins the hub before anything is sent; the id may be shown and logged, the
secret never. Hash: base32, lower case, unpadded, of SHA-256 over the root's SubjectPublicKeyInfo: 52 characters.
"""

import base64
import hashlib
import re
import secrets
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from meshagent.model.errors import UsageError

VERSION = "ma1"
_HASH_CHARS = 52  # 256 bits in base32
_ID_CHARS = 12
_SECRET_BYTES = 32
_SECRET_CHARS = 52
_ALPHABET = re.compile(r"[a-z2-7]+", re.ASCII)
_MAX_CHARS = 512
_HINT = "copy the whole line that 'meshagent hub token create' printed"


@dataclass(frozen=True, slots=True)
class Token:
    """``ca_hash`` pins the hub's root, ``id`` names the token, ``secret`` proves it (never in ``repr``)."""

    ca_hash: str
    id: str
    secret: str = field(repr=False)

    def reveal(self) -> str:
        """The whole string, for the one who is meant to have it."""
        return f"{VERSION}.{self.ca_hash}.{self.id}.{self.secret}"


def new_token(ca_hash: str) -> Token:
    """A token with a fresh id (60 bits) and secret (256 bits)."""
    return Token(ca_hash, base32(secrets.token_bytes(8))[:_ID_CHARS], base32(secrets.token_bytes(_SECRET_BYTES)))


def parse_token(text: str) -> Token:
    """Parse a typed or pasted token. Raises ``UsageError``; the message never repeats the text, which may be secret.

    Codes: ``token-prefix`` (not a token of this version), ``token-truncated`` (a part is missing or short),
    ``token-characters`` (something that is not in the alphabet).
    """
    text = text.strip()
    version, *parts = text.split(".")
    if version != VERSION or len(text) > _MAX_CHARS:
        raise UsageError(
            "token-prefix", f"this is not an enrolment token: it does not start with {VERSION}.", hint=_HINT
        )
    if any(part and not _ALPHABET.fullmatch(part) for part in parts) or len(parts) > 3:
        raise UsageError("token-characters", "the token holds characters that no token has", hint=_HINT)
    lengths = [len(part) for part in parts]
    wanted = [_HASH_CHARS, _ID_CHARS, _SECRET_CHARS]
    if lengths != wanted:
        kind = "truncated" if sum(lengths) < sum(wanted) else "too long"
        raise UsageError("token-truncated", f"the token is {kind}", hint=_HINT)
    return Token(*parts)


def spki_hash(certificate_der: bytes) -> str:
    """The pin of a root certificate (DER). Raises ``ValueError`` when it is not a certificate."""
    certificate = x509.load_der_x509_certificate(certificate_der)
    encoding, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return base32(hashlib.sha256(certificate.public_key().public_bytes(encoding, form)).digest())


def secret_hash(secret: str) -> str:
    """What a hub stores of a secret. It has 256 random bits: a plain hash is enough, no stretching."""
    return hashlib.sha256(b"meshagent/v1/token" + secret.encode()).hexdigest()


def base32(data: bytes) -> str:
    """Base32 (RFC 4648) in lower case, without padding."""
    return base64.b32encode(data).decode().rstrip("=").lower()
