"""What is believed of an answer to a CSR: everything is checked before anything is kept.

The checks are the host's own, independent of who signed: the certificate carries our key, exactly our identity,
may be used on both ends of TLS, leads to a root of the bundle, and that bundle shares a root with the one trusted so
far (a control plane changes roots with both in the bundle; one that swaps them unseen is refused).
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from meshagent.agent.identity.keys import load_workload_key
from meshagent.model.errors import MeshagentError
from meshagent.model.identity import Identity, SpiffeId, parse_spiffe_id

#: A leaf, the CAs above it and the roots; more is not a chain but an attack on memory (bounds, not a protocol limit).
MAX_CERTIFICATES = 32
MAX_PEM = 256 * 1024

#: Clocks of hub and host may differ by this much before it is an error (same limit as at enrolment).
CLOCK_TOLERANCE = timedelta(minutes=5)


def identity_from_answer(
    cert_chain: Sequence[str], key_pem: bytes, expected: SpiffeId, now: datetime, trusted_bundle: str = ""
) -> Identity:
    """The identity that an answer of the CSR service carries; ``cert_chain`` as in ``IstioCertificateResponse``.

    ``now`` is aware UTC by the control plane's clock. With ``trusted_bundle`` the new bundle must share a root with it.
    Raises ``MeshagentError`` ``bad-certificate`` and says which check failed.
    """
    if len(cert_chain) < 2:
        raise _bad("the answer holds no root")
    chain, roots = load_pems("".join(cert_chain[:-1])), load_pems(cert_chain[-1])
    identity = _assemble(chain, roots, key_pem, expected, now)
    if trusted_bundle and not _share_a_root(roots, load_pems(trusted_bundle)):
        raise _bad("none of its roots is trusted so far")
    return identity


def identity_from_set(key_pem: bytes, chain_pem: str, bundle_pem: str) -> Identity:
    """A stored set taken apart again: key, chain and bundle must still fit each other; an expired one is returned.

    Raises ``MeshagentError`` ``identity-damaged``.
    """
    try:
        chain, roots = load_pems(chain_pem), load_pems(bundle_pem)
        expected = _single_identity(chain[0])
        return _assemble(chain, roots, key_pem, expected, now=None)
    except MeshagentError as error:
        raise MeshagentError("identity-damaged", f"the stored certificate can't be used: {error.message}") from error


def load_pems(text: str) -> list[x509.Certificate]:
    """One or more PEM certificates; raises ``MeshagentError`` ``bad-certificate``."""
    if len(text) > MAX_PEM:
        raise _bad("it is larger than 256 KiB")
    try:
        found = x509.load_pem_x509_certificates(text.encode("ascii"))
    except ValueError as error:
        raise _bad("it is not PEM") from error
    if len(found) > MAX_CERTIFICATES:
        raise _bad(f"it holds more than {MAX_CERTIFICATES} certificates")
    return found


def _assemble(
    chain: list[x509.Certificate],
    roots: list[x509.Certificate],
    key_pem: bytes,
    expected: SpiffeId,
    now: datetime | None,
) -> Identity:
    leaf = chain[0]
    _require_our_key(leaf, key_pem)
    found = _single_identity(leaf)
    if found != expected:
        raise _bad(f"it names {found}, not {expected}")
    _require_usages(leaf)
    _require_path(leaf, chain[1:], roots)
    if now is not None:
        _require_valid(leaf, now)
    return Identity(
        spiffe_id=found,
        serial=format(leaf.serial_number, "x"),
        not_before=leaf.not_valid_before_utc,
        not_after=leaf.not_valid_after_utc,
        chain_pem=_pem(chain),
        bundle_pem=_pem(roots),
        key_pem=key_pem,
    )


def _require_our_key(leaf: x509.Certificate, key_pem: bytes) -> None:
    ours = load_workload_key(key_pem).public_key()
    if _spki(ours) != _spki(leaf.public_key()):
        raise _bad("it is not for the key that was sent")


def _single_identity(leaf: x509.Certificate) -> SpiffeId:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError) as error:
        raise _bad("it carries no name") from error
    if len(names) != 1 or not isinstance(names[0], x509.UniformResourceIdentifier):
        raise _bad("it carries other names than one URI")
    return parse_spiffe_id(names[0].value)


def _require_usages(leaf: x509.Certificate) -> None:
    try:
        usages = set(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except (x509.ExtensionNotFound, ValueError):
        usages = set()
    if not {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH} <= usages:
        raise _bad("it may not be used on both ends of TLS")
    if _is_ca(leaf):
        raise _bad("it is a CA certificate")


def _require_path(leaf: x509.Certificate, intermediates: list[x509.Certificate], roots: list[x509.Certificate]) -> None:
    """Walk from the leaf to a root by signatures; each step uses up one intermediate, so it ends."""
    current, left = leaf, list(intermediates)
    while True:
        if any(_issued(current, root) for root in roots):
            return
        step = next((c for c in left if _issued(current, c)), None)
        if step is None:
            raise _bad("its chain leads to none of the roots")
        left.remove(step)
        current = step


def _issued(child: x509.Certificate, issuer: x509.Certificate) -> bool:
    if not _is_ca(issuer):
        return False
    try:
        child.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        return False


def _require_valid(leaf: x509.Certificate, now: datetime) -> None:
    if leaf.not_valid_before_utc > now.astimezone(UTC) + CLOCK_TOLERANCE:
        raise _bad("it is not valid yet", hint="compare this host's clock with the hub's")
    if leaf.not_valid_after_utc <= now.astimezone(UTC):
        raise _bad("it has already expired", hint="compare this host's clock with the hub's")


def _share_a_root(new: list[x509.Certificate], old: list[x509.Certificate]) -> bool:
    return bool({_spki(c.public_key()) for c in new} & {_spki(c.public_key()) for c in old})


def _spki(key: object) -> bytes:
    return key.public_bytes(  # type: ignore[attr-defined, no-any-return]  # the union of public keys has no common base
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _pem(certificates: list[x509.Certificate]) -> str:
    return "".join(c.public_bytes(serialization.Encoding.PEM).decode("ascii") for c in certificates)


def _bad(why: str, hint: str = "look at the hub's log; the certificate in use stays") -> MeshagentError:
    return MeshagentError("bad-certificate", f"the certificate that came back is refused: {why}", hint=hint)
