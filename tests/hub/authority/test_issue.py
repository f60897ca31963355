"""A CSR contributes a key and nothing else; what is signed is what was decided."""

import contextlib
import ssl
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from meshagent.hub.authority.issue import (
    BACKDATE,
    HUB_BACKDATE,
    RefusedCsr,
    host_key_of,
    issue_hub,
    issue_workload,
    make_root,
    read_csr,
    serial_for,
    serial_hex,
    spki_sha256,
)
from meshagent.model.errors import MeshagentError
from meshagent.model.identity import SpiffeId
from tests.fakes.authority import Authority
from tests.hub.hosts import NOW, csr_pem

WEB = SpiffeId("mesh.internal", "default", "web")
URI = x509.UniformResourceIdentifier
WEEK = timedelta(days=7)


def test_a_plain_request_and_one_that_asks_for_its_own_identity_are_taken() -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    own: list[x509.GeneralName] = [URI(str(WEB))]
    for names in (None, own):
        assert spki_sha256(read_csr(csr_pem(key, names), WEB)) == spki_sha256(key.public_key())


@pytest.mark.parametrize(
    "names",
    [
        [URI("spiffe://mesh.internal/ns/default/sa/db")],
        [URI("spiffe://other.example/ns/default/sa/web")],
        [URI(str(WEB)), URI("spiffe://mesh.internal/ns/default/sa/db")],
        [URI(str(WEB)), x509.DNSName("hub.mesh.internal")],
        [x509.DNSName("hub.mesh.internal")],
        [x509.DNSName("web")],
        [x509.RFC822Name("root@mesh.internal")],
    ],
)
def test_a_request_for_any_other_name_is_refused(names: list[x509.GeneralName]) -> None:
    with pytest.raises(RefusedCsr, match="another identity"):
        read_csr(csr_pem(names=names), WEB)


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(65537, 1024),
        rsa.generate_private_key(3, 2048),
        ec.generate_private_key(ec.SECP256K1()),
        ec.generate_private_key(ec.SECP521R1()),
    ],
)
def test_a_weak_or_odd_key_is_refused(key: object) -> None:
    with pytest.raises(RefusedCsr, match="the key is not"):
        read_csr(csr_pem(key), WEB)


def test_an_ed25519_key_which_the_proxy_cannot_use_is_refused() -> None:
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    from cryptography.hazmat.primitives.serialization import Encoding

    pem = request.sign(ed25519.Ed25519PrivateKey.generate(), None).public_bytes(Encoding.PEM).decode()
    with pytest.raises(RefusedCsr, match="the key is not"):
        read_csr(pem, WEB)


def test_a_request_that_is_not_signed_by_its_own_key_is_refused() -> None:
    import base64

    lines = csr_pem().strip().splitlines()
    der = bytearray(base64.b64decode("".join(lines[1:-1])))
    der[-3] ^= 1  # inside the signature
    body = base64.encodebytes(bytes(der)).decode()
    with pytest.raises(RefusedCsr):
        read_csr(f"{lines[0]}\n{body}{lines[-1]}\n", WEB)


@pytest.mark.parametrize(
    "pem", ["", "nonsense", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n", "x" * 100_000, "\0", "é"]
)
def test_what_is_no_request_is_refused_without_a_traceback(pem: str) -> None:
    with pytest.raises(RefusedCsr):
        read_csr(pem, WEB)


def test_two_requests_in_one_are_refused() -> None:
    with pytest.raises(RefusedCsr):
        read_csr(csr_pem() + csr_pem(), WEB)


def test_a_workload_certificate_carries_what_was_decided_and_nothing_that_was_asked() -> None:
    root = make_root("mesh.internal", NOW)
    asked = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hub.mesh.internal")])
    key = read_csr(csr_pem(subject=asked), WEB)
    leaf = issue_workload(root, key, WEB, NOW, WEEK)
    leaf.verify_directly_issued_by(root.certificate)
    assert list(leaf.subject) == []
    san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert san.critical and list(san.value) == [URI(str(WEB))]
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usage) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert leaf.not_valid_before_utc == NOW - BACKDATE and leaf.not_valid_after_utc == NOW + WEEK


def test_the_hubs_certificate_has_its_name_and_no_identity() -> None:
    root = make_root("mesh.internal", NOW)
    leaf = issue_hub(root, ec.generate_private_key(ec.SECP256R1()).public_key(), "mesh.internal", NOW)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.DNSName("hub.mesh.internal")]
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert leaf.not_valid_before_utc == NOW - HUB_BACKDATE, "a host that is days behind still hears the hub's time"


def test_the_root_is_a_ca_for_ten_years_that_names_its_trust_domain() -> None:
    root = make_root("mesh.internal", NOW)
    names = root.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [URI("spiffe://mesh.internal")]
    assert (root.certificate.not_valid_after_utc - NOW).days == 3650
    assert "key" not in repr(root)


def test_nothing_outlives_the_root_and_an_expired_root_issues_nothing() -> None:
    root = make_root("mesh.internal", NOW)
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    end = root.certificate.not_valid_after_utc
    assert issue_workload(root, key, WEB, end - timedelta(days=1), WEEK).not_valid_after_utc == end
    with pytest.raises((MeshagentError, ValueError)):
        issue_workload(root, key, WEB, end + timedelta(days=1), WEEK)


def _strict(purpose: int, chain_pem: str, key_pem: bytes, roots_pem: str) -> ssl.SSLContext:
    """As ``ssl.create_default_context`` makes them from Python 3.13 on."""
    context = ssl.SSLContext(purpose)
    context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=roots_pem)
    with tempfile.NamedTemporaryFile() as held:
        held.write(key_pem + b"\n" + chain_pem.encode())
        held.flush()
        context.load_cert_chain(held.name)
    return context


def _of_a_hub() -> tuple[str, bytes, str, str, bytes]:
    """Chain and key of the hub, the roots, chain and key of a workload: as the CA issues them."""
    now = datetime.now(UTC)
    root = make_root("mesh.internal", now)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    hub, leaf = (
        issue_hub(root, keys[0].public_key(), "mesh.internal", now),
        issue_workload(root, keys[1].public_key(), WEB, now, WEEK, serial_for("ab" * 32)),
    )
    hub_key, key = (each.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) for each in keys)
    texts = [c.public_bytes(Encoding.PEM).decode() for c in (hub, leaf)]
    return texts[0], hub_key, root.pem, texts[1], key


def _of_the_tests() -> tuple[str, bytes, str, str, bytes]:
    """The same of the CA that tests use."""
    authority = Authority()
    identity = authority.identity()
    return (*authority.hub(), authority.root_pem, identity.chain_pem, identity.key_pem)


@pytest.mark.parametrize("made", [_of_a_hub, _of_the_tests])
def test_both_ends_stand_the_strict_verification_of_newer_pythons(
    made: Callable[[], tuple[str, bytes, str, str, bytes]],
) -> None:
    hub_chain, hub_key, roots, chain, key = made()
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = _strict(ssl.PROTOCOL_TLS_SERVER, hub_chain, hub_key, roots).wrap_bio(
        to_server, to_client, server_side=True
    )
    client = _strict(ssl.PROTOCOL_TLS_CLIENT, chain, key, roots).wrap_bio(
        to_client, to_server, server_hostname="hub.mesh.internal"
    )
    for _ in range(4):
        for end in (client, server):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    assert client.getpeercert() and server.getpeercert()


def test_a_serial_names_the_host_key_it_is_for_and_no_two_are_the_same() -> None:
    serials = {serial_hex(serial_for("0123456789abcdef" * 4)) for _ in range(50)}
    assert len(serials) == 50 and {host_key_of(s) for s in serials} == {"0123456789abcdef0123"}
    assert all(int(s, 16).bit_length() < 160 for s in serials)
    assert host_key_of(serial_hex(x509.random_serial_number() >> 8)) == ""
