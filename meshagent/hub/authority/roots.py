"""The CA's keys on disk: made on first start, found again on every other.

Certificates are rows of the store, keys are files beside it (0600), named after the certificate's SHA-256: a copy of
the database alone can't issue anything. The key is on disk before the row that names it, so a crash in between leaves
an unused file, never a root without a key.

Once a CA stands, ``made.json`` beside the keys says so. A database that comes up empty after that was lost, not new:
the start is refused, because a second CA would lock out every host that trusts the first.
"""

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from meshagent.hub.authority.issue import Root, issue_hub, make_root, spki_sha256
from meshagent.hub.store.interface import Store, Transaction
from meshagent.hub.store.rows import RootRow
from meshagent.machine.files import make_dir, write_atomic
from meshagent.machine.state import write_state
from meshagent.model.errors import MeshagentError
from meshagent.protocol.enrol import spki_hash


@dataclass(frozen=True, slots=True)
class TrustRoots:
    """``active`` signs; ``bundle_pem`` holds every root that peers must accept, the active one last."""

    active: Root
    bundle_pem: str

    @property
    def ca_hash(self) -> str:
        """What join lines pin (see ``protocol.enrol``)."""
        return spki_hash(self.active.certificate.public_bytes(Encoding.DER))


@dataclass(frozen=True, slots=True)
class HubCertificate:
    """The hub's TLS certificate: ``chain_pem`` leaf first, root last, and its key, which is never written anywhere."""

    chain_pem: str
    key_pem: bytes = field(repr=False)
    not_before: datetime
    not_after: datetime


async def open_roots(store: Store, directory: Path, trust_domain: str, now: datetime) -> TrustRoots:
    """The CA below ``directory``, made when the store holds none and there never was one.

    Raises ``MeshagentError`` when the store belongs to another trust domain, lost its CA, or the active root's key is
    missing.
    """
    rows = await store.read(lambda tx: _roots_of(tx, trust_domain))
    if not rows:
        _refuse_second(directory)
        root = make_root(trust_domain, now)
        make_dir(directory, mode=0o700)
        write_atomic(_key_path(directory, _fingerprint(root)), _key_pem(root.key), mode=0o600)
        row = RootRow(_fingerprint(root), root.pem, now)
        rows = await store.transact(lambda tx: _first_root(tx, row, trust_domain))
    roots = load_roots(directory, rows)
    with contextlib.suppress(MeshagentError):  # a full disk: the next start writes it
        note_made(directory, trust_domain, rows)
    return roots


def note_made(directory: Path, trust_domain: str, rows: Sequence[RootRow]) -> None:
    """Write down that a CA stands here; harmless when that is known. Raises ``MeshagentError``."""
    if not _made_path(directory).exists():
        roots = [row.fingerprint for row in rows]
        write_state(_made_path(directory), {"trust_domain": trust_domain, "roots": roots})


def _refuse_second(directory: Path) -> None:
    if _made_path(directory).exists():
        raise MeshagentError(
            "store-lost",
            f"the hub's database holds no CA, but one was made here before ({directory})",
            hint="bring the database back: meshagent hub restore FILE; for a new mesh with a new CA, that every host "
            f"has to join again, move {directory} away",
        )


def _roots_of(tx: Transaction, trust_domain: str) -> tuple[RootRow, ...]:
    known = tx.meta("trust_domain")
    if known not in (None, trust_domain):
        raise MeshagentError(
            "trust-domain-changed",
            f"this hub's CA is for trust domain {known}, not {trust_domain}",
            hint=f"run it with --trust-domain {known}, or start a new hub with another --root",
        )
    return tx.roots()


def _first_root(tx: Transaction, row: RootRow, trust_domain: str) -> tuple[RootRow, ...]:
    if not tx.roots():
        tx.put_meta("trust_domain", trust_domain)
        tx.put_root(row)
    return tx.roots()


def load_roots(directory: Path, rows: Iterable[RootRow]) -> TrustRoots:
    """The roots of ``rows`` with the active one's key, which fits. Raises ``MeshagentError`` (``ca-key-…``)."""
    ordered = sorted(rows, key=lambda row: row.active)
    active = ordered[-1]
    path = _key_path(directory, active.fingerprint)
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
        certificate = x509.load_pem_x509_certificate(active.certificate_pem.encode())
    except (OSError, ValueError, TypeError) as error:
        raise MeshagentError(
            "ca-key-missing",
            f"the CA's key {path} or its certificate can't be read: {error}",
            hint="restore both from one backup: meshagent hub restore FILE --force",
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or spki_sha256(key.public_key()) != spki_sha256(
        certificate.public_key()
    ):
        raise MeshagentError(
            "ca-key-wrong", f"{path} is not the key of the CA's certificate", hint="meshagent hub restore FILE --force"
        )
    return TrustRoots(Root(certificate, key), "".join(row.certificate_pem for row in ordered))


def issue_hub_certificate(roots: TrustRoots, trust_domain: str, now: datetime) -> HubCertificate:
    """A new TLS key and certificate for the hub."""
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = issue_hub(roots.active, key.public_key(), trust_domain, now)
    chain = leaf.public_bytes(Encoding.PEM).decode() + roots.active.pem
    return HubCertificate(chain, _key_pem(key), leaf.not_valid_before_utc, leaf.not_valid_after_utc)


def _fingerprint(root: Root) -> str:
    return root.certificate.fingerprint(hashes.SHA256()).hex()


def _made_path(directory: Path) -> Path:
    return directory / "made.json"


def key_name(fingerprint: str) -> str:
    """The name of the file that holds a root's key."""
    return f"root-{fingerprint[:16]}.key"


def _key_path(directory: Path, fingerprint: str) -> Path:
    return directory / key_name(fingerprint)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
