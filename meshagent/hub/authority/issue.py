"""Certificates: build what was decided, sign it, and validate what was signed before anybody sees it. Pure.

A CSR contributes its public key and nothing else. What it asks for beside that is either the identity already decided
or a reason to refuse. Sources: SPIFFE X.509-SVID section 3-5, RFC 5280 section 4.2.1.6, RFC 2986.
"""

import hashlib
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from meshagent.model.errors import MeshagentError
from meshagent.model.identity import SpiffeId

#: Back-dated by as much as istiod does: clocks of healthy hosts differ by seconds, not minutes.
BACKDATE = timedelta(minutes=2)
#: The hub's own certificate reaches further back: whoever looks at it knows the CA already, and a host whose clock is
#: days behind (or whose hub is ahead) must still get through to hear the hub's time and complain about it.
HUB_BACKDATE = timedelta(days=7)
ROOT_LIFE = timedelta(days=3650)
HUB_LIFE = timedelta(days=90)

#: An RSA-4096 CSR is 1.7 KB of PEM.
MAX_PEM_BYTES = 16 * 1024
RSA_SIZES = (2048, 3072, 4096)

LeafKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey


class RefusedCsr(MeshagentError):  # noqa: N818 - an error to the one who asks, a decision to us
    """The request can't be signed, whoever asks."""

    def __init__(self, message: str, *, hint: str = "make a new key and request: meshagent certs rotate") -> None:
        super().__init__("bad-csr", message, hint=hint)


@dataclass(frozen=True, slots=True)
class Root:
    """A CA certificate with its key; the key never shows in ``repr``."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()


def serial_hex(serial: int) -> str:
    """How a serial number is written everywhere: lower-case hex without leading zeros."""
    return f"{serial:x}"


def spki_sha256(key: object) -> bytes:
    """SHA-256 over a public key's SubjectPublicKeyInfo (RFC 5280 section 4.1): for pins and fingerprints."""
    der: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]
    return hashlib.sha256(der).digest()


# --- serial numbers

#: Of a serial's 158 bits, these lowest name the host key.
_HOST_BITS = 80


def serial_for(host_key_sha256: str) -> int:
    """A serial number that names the host it is for: 78 random bits, then 80 bits of the host key's SHA-256.

    So a hub that was restored from a backup knows certificates that were issued after it. CAs must put 64 random bits
    in (CA/Browser Forum baseline 7.1), 20 octets are the most (RFC 5280 section 4.1.2.2).
    """
    return (1 << 157) | (secrets.randbits(77) << _HOST_BITS) | int(host_key_sha256[: _HOST_BITS // 4], 16)


def host_key_of(serial: str) -> str:
    """The first 20 hex digits of the host key's SHA-256 that a serial (``serial_hex``) names; '' when it names none."""
    return serial[-_HOST_BITS // 4 :] if len(serial) == 40 and serial[0] in "23" else ""


# --- requests


def read_csr(pem: str, identity: SpiffeId) -> LeafKey:
    """The public key of a PKCS#10 request that may be signed for ``identity``; raises ``RefusedCsr`` otherwise."""
    if len(pem) > MAX_PEM_BYTES or pem.count("-----BEGIN") != 1:
        raise RefusedCsr("the certificate request is not one PEM block of reasonable size")
    try:
        csr = x509.load_pem_x509_csr(pem.encode())
        key = csr.public_key()
    except Exception as error:  # cryptography raises several kinds on hostile input
        raise RefusedCsr("the certificate request can't be read") from error
    leaf_key = _strong(key)  # before the signature: checking one by a giant key would cost us minutes
    try:
        signed = csr.is_signature_valid and isinstance(
            csr.signature_hash_algorithm, hashes.SHA256 | hashes.SHA384 | hashes.SHA512
        )
    except Exception as error:
        raise RefusedCsr("the signature of the certificate request can't be read") from error
    if not signed:
        raise RefusedCsr("the certificate request is not signed by its own key with SHA-2")
    _asks_only_for(csr, identity)
    return leaf_key


def _strong(key: object) -> LeafKey:
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
        return key
    if isinstance(key, rsa.RSAPublicKey) and key.key_size in RSA_SIZES and key.public_numbers().e == 65537:
        return key
    raise RefusedCsr("the key is not P-256, P-384 or RSA 2048/3072/4096")


def _asks_only_for(csr: x509.CertificateSigningRequest, identity: SpiffeId) -> None:
    try:
        names = list(csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return
    except Exception as error:
        raise RefusedCsr("the extensions of the certificate request can't be read") from error
    if names != [x509.UniformResourceIdentifier(str(identity))]:
        raise RefusedCsr(f"the certificate request asks for another identity than {identity}")


# --- certificates


def make_root(trust_domain: str, now: datetime) -> Root:
    """A new CA: P-256, ten years, URI SAN ``spiffe://<trust domain>``."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, trust_domain[:64]),
            x509.NameAttribute(NameOID.COMMON_NAME, f"meshagent root {now:%Y-%m-%d}"),
        ]
    )
    builder = (
        _builder(key.public_key(), name, name, now, now + ROOT_LIFE)
        # 1: a cross-signature of the next root by this one is a CA below it
        .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
        .add_extension(_san(f"spiffe://{trust_domain}"), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    certificate = builder.sign(key, hashes.SHA256())
    certificate.verify_directly_issued_by(certificate)
    return Root(certificate, key)


def issue_workload(
    root: Root, key: LeafKey, identity: SpiffeId, now: datetime, validity: timedelta, serial: int | None = None
) -> x509.Certificate:
    """An SVID for ``identity`` over ``key``, never longer than the root lives; validated. ``serial`` None = random."""
    not_after = min(now + validity, root.certificate.not_valid_after_utc)
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    # critical, because the subject is empty (RFC 5280 section 4.2.1.6)
    leaf = _leaf(root, key, _san(str(identity)), usages, now, not_after, serial=serial)
    _validate(leaf, root, key, [x509.UniformResourceIdentifier(str(identity))], now)
    return leaf


def issue_hub(root: Root, key: LeafKey, trust_domain: str, now: datetime) -> x509.Certificate:
    """The hub's own TLS certificate: DNS SAN ``hub.<trust domain>``, which no CSR can get."""
    name = x509.DNSName(f"hub.{trust_domain}")
    not_after = min(now + HUB_LIFE, root.certificate.not_valid_after_utc)
    san = x509.SubjectAlternativeName([name])
    leaf = _leaf(root, key, san, [ExtendedKeyUsageOID.SERVER_AUTH], now, not_after, HUB_BACKDATE)
    _validate(leaf, root, key, [name], now)
    return leaf


def _leaf(
    root: Root,
    key: LeafKey,
    san: x509.SubjectAlternativeName,
    usages: list[x509.ObjectIdentifier],
    now: datetime,
    not_after: datetime,
    backdate: timedelta = BACKDATE,
    serial: int | None = None,
) -> x509.Certificate:
    signer_id = root.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return (
        _builder(key, x509.Name([]), root.certificate.subject, now, not_after, backdate, serial)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(san, critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(signer_id), critical=False)
        .sign(root.key, hashes.SHA256())
    )


def _builder(
    key: LeafKey,
    subject: x509.Name,
    issuer: x509.Name,
    now: datetime,
    not_after: datetime,
    backdate: timedelta = BACKDATE,
    serial: int | None = None,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(serial or x509.random_serial_number())
        .not_valid_before(now.astimezone(UTC) - backdate)
        .not_valid_after(not_after)
    )


def _san(uri: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_encipherment=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _validate(leaf: x509.Certificate, root: Root, key: LeafKey, names: list[x509.GeneralName], now: datetime) -> None:
    """What was signed is what was decided, read back from its bytes."""
    read = x509.load_der_x509_certificate(leaf.public_bytes(Encoding.DER))
    san = read.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    constraints = read.extensions.get_extension_for_class(x509.BasicConstraints).value
    try:
        read.verify_directly_issued_by(root.certificate)
        issued = True
    except (InvalidSignature, ValueError, TypeError):
        issued = False
    holds = (
        issued
        and san.critical
        and list(san.value) == names
        and not constraints.ca
        and spki_sha256(read.public_key()) == spki_sha256(key)
        and read.not_valid_before_utc <= now < read.not_valid_after_utc <= root.certificate.not_valid_after_utc
    )
    if not holds:
        raise MeshagentError(
            "ca-unusable",
            "the CA can't issue a valid certificate now",
            hint="look at its validity with: meshagent hub ca status, and at the hub's clock",
        )
