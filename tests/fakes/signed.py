"""Answers to CSRs as the hub's authority gives them, and the wrong ones that a host must refuse."""

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from meshagent.agent.identity.keys import build_csr, generate_workload_key
from meshagent.agent.identity.svid import identity_from_answer
from meshagent.model.identity import Identity, SpiffeId
from tests.fakes.authority import Authority

WEB = SpiffeId("mesh.internal", "default", "web")


def answer(
    authority: Authority,
    csr_pem: str,
    *,
    san: str | None = None,
    life: timedelta = timedelta(days=7),
    now: datetime | None = None,
    both_ends: bool = True,
) -> list[str]:
    """Leaf and root as Istio's CSR service answers; NotBefore two minutes back."""
    csr = x509.load_pem_x509_csr(csr_pem.encode())
    asked = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(san)]) if san else asked
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH] + ([ExtendedKeyUsageOID.SERVER_AUTH] if both_ends else [])
    start = now or datetime.now(UTC)
    leaf = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(authority.root.subject)
        .public_key(csr.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - timedelta(minutes=2))
        .not_valid_after(start + life)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(names, critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    return [leaf.public_bytes(serialization.Encoding.PEM).decode(), authority.root_pem]


def fresh_identity(authority: Authority, now: datetime | None = None, life: timedelta = timedelta(days=7)) -> Identity:
    """A newly signed identity of ``WEB``."""
    key, now = generate_workload_key(), now or datetime.now(UTC)
    return identity_from_answer(answer(authority, build_csr(key, WEB), now=now, life=life), key, WEB, now)
