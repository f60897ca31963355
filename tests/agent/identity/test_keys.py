"""Keys and CSRs."""

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from meshagent.agent.identity.keys import (
    HostKeyKind,
    WorkloadKeyKind,
    build_csr,
    generate_host_key,
    generate_workload_key,
    load_host_key,
    load_workload_key,
)
from meshagent.model.errors import MeshagentError
from tests.fakes.signed import WEB


@pytest.mark.parametrize("kind", list(HostKeyKind))
def test_a_host_key_survives_the_disk_and_its_signature_is_verified_by_its_public_half(kind: HostKeyKind) -> None:
    key = load_host_key(generate_host_key(kind).private_pem())
    public = serialization.load_pem_public_key(key.public_pem.encode())
    if isinstance(public, ed25519.Ed25519PublicKey):
        public.verify(key.sign(b"nonce"), b"nonce")
    else:
        assert isinstance(public, ec.EllipticCurvePublicKey)
        public.verify(key.sign(b"nonce"), b"nonce", ec.ECDSA(hashes.SHA256()))


@pytest.mark.parametrize("kind", [WorkloadKeyKind.P256, WorkloadKeyKind.P384, WorkloadKeyKind.RSA2048])
def test_a_csr_asks_for_the_identity_as_one_critical_uri_and_for_nothing_else(kind: WorkloadKeyKind) -> None:
    pem = generate_workload_key(kind)
    csr = x509.load_pem_x509_csr(build_csr(pem, WEB).encode())
    san = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert csr.is_signature_valid
    assert san.critical
    assert [name.value for name in san.value] == ["spiffe://mesh.internal/ns/default/sa/web"]
    assert len(list(csr.subject)) == 0
    assert isinstance(
        load_workload_key(pem), rsa.RSAPrivateKey if kind.startswith("rsa") else ec.EllipticCurvePrivateKey
    )


def test_a_private_key_never_shows_in_a_repr() -> None:
    key = generate_host_key()
    assert "PRIVATE" not in repr(key) + str(key)


@pytest.mark.parametrize(
    "damaged", [b"", b"\x00" * 100, b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_a_damaged_key_is_an_error_with_a_hint(damaged: bytes) -> None:
    for load, code in ((load_host_key, "host-key-damaged"), (load_workload_key, "identity-damaged")):
        with pytest.raises(MeshagentError) as caught:
            load(damaged)
        assert caught.value.code == code
        assert caught.value.hint
