"""One enrolment or renewal as one transaction: decided, signed, recorded, all or nothing.

Signing takes 0.1 ms, so it happens inside the transaction: a certificate that is not on record never leaves, and two
hosts racing for a token's last use are first and second.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from meshagent.hub.authority.issue import LeafKey, host_key_of, issue_workload, read_csr, serial_for, serial_hex
from meshagent.hub.authority.policy import (
    DEFAULT_VALIDITY,
    EnrolmentAsk,
    EnrolmentGrant,
    check_caller,
    check_token,
    decide_enrolment,
    wanted_name,
)
from meshagent.hub.authority.roots import TrustRoots
from meshagent.hub.store.interface import Transaction
from meshagent.hub.store.rows import CertificateRow, HostRow, HostStatus, TokenUseRow
from meshagent.model.identity import SpiffeId


@dataclass(frozen=True, slots=True)
class Issued:
    """What goes back to the host. ``ended`` is the enrolment this one took over, if any."""

    host: HostRow
    chain: tuple[str, ...]
    ended: HostRow | None = None


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What the host tells about itself when it enrols."""

    csr_pem: str
    host_key_pem: str
    addresses: tuple[str, ...]
    boot_id: str
    agent_version: str


@dataclass(frozen=True, slots=True)
class Signer:
    """What signing needs beside the request."""

    roots: TrustRoots
    trust_domain: str

    def identity(self, namespace: str, service_account: str) -> SpiffeId:
        return SpiffeId(self.trust_domain, namespace, service_account)

    def sign(
        self, key: LeafKey, identity: SpiffeId, now: datetime, validity: timedelta, host_key_sha256: str
    ) -> x509.Certificate:
        return issue_workload(self.roots.active, key, identity, now, validity, serial_for(host_key_sha256))

    def chain(self, leaf: x509.Certificate) -> tuple[str, ...]:
        """Leaf first, last element = root bundle, as Istio's CSR service answers."""
        return (leaf.public_bytes(Encoding.PEM).decode(), self.roots.bundle_pem)


def enrol(tx: Transaction, ask: EnrolmentAsk, facts: HostFacts, signer: Signer, now: datetime) -> Issued:
    """Spend a use of the token, record the host, issue its first certificate; raises ``Refusal`` or ``RefusedCsr``."""
    token = check_token(ask, tx.token(ask.token_id), now)
    name = wanted_name(ask, token)
    grant = decide_enrolment(ask, token, tx.token_uses(token.id), tx.host(name), name)
    identity = signer.identity(grant.namespace, grant.service_account)
    key = read_csr(facts.csr_pem, identity)
    leaf = signer.sign(key, identity, now, DEFAULT_VALIDITY, ask.host_key_sha256)
    if grant.replaces:
        tx.put_host(replace(grant.replaces, status=HostStatus.REPLACED, announcement=b""))
    host = _record_host(tx, ask, facts, grant, now)
    if grant.new_use:
        tx.put_token_use(TokenUseRow(token.id, ask.host_key_sha256, host.name, now))
    _record_certificate(tx, leaf, host)
    return Issued(host, signer.chain(leaf), grant.replaces)


def _record_host(tx: Transaction, ask: EnrolmentAsk, facts: HostFacts, grant: EnrolmentGrant, now: datetime) -> HostRow:
    told = {
        "last_seen": now,
        "services": grant.services,
        "addresses": facts.addresses,
        "boot_id": facts.boot_id,
        "agent_version": facts.agent_version,
    }
    if grant.keeps:
        host = replace(grant.keeps, **told)  # type: ignore[arg-type]
        tx.put_host(host)
        return host
    fresh = HostRow(
        id=0,
        name=grant.host_name,
        namespace=grant.namespace,
        service_account=grant.service_account,
        host_key_pem=facts.host_key_pem,
        host_key_sha256=ask.host_key_sha256,
        created=now,
        last_seen=now,
    )
    return tx.add_host(replace(fresh, **told))  # type: ignore[arg-type]


def renew(tx: Transaction, serial: str, csr_pem: str, signer: Signer, now: datetime, validity: timedelta) -> Issued:
    """A new certificate for the enrolment behind the caller's certificate; raises ``Refusal`` or ``RefusedCsr``."""
    host = caller(tx, serial)
    identity = signer.identity(host.namespace, host.service_account)
    leaf = signer.sign(read_csr(csr_pem, identity), identity, now, validity, host.host_key_sha256)
    _record_certificate(tx, leaf, host)
    tx.drop_certificates(now - timedelta(days=1))
    return Issued(host, signer.chain(leaf))


def caller(tx: Transaction, serial: str) -> HostRow:
    """The active enrolment a certificate of ours was issued to; raises ``Refusal``.

    One that isn't on record was issued after the backup this database comes from: then its host key, which the serial
    names and the CA signed for, tells which enrolment it belongs to.
    """
    known = tx.certificate(serial)
    if known:
        return check_caller(tx.host_by_id(known.host_id))
    prefix = host_key_of(serial)
    found = tx.hosts_by_key(prefix) if prefix else ()
    return check_caller(found[0] if len(found) == 1 else None)


def _record_certificate(tx: Transaction, leaf: x509.Certificate, host: HostRow) -> None:
    tx.put_certificate(CertificateRow(serial_hex(leaf.serial_number), host.id, leaf.not_valid_after_utc))


def end_host(tx: Transaction, name: str, status: HostStatus) -> HostRow | None:
    """End the active enrolment under ``name``; None when there is none. Its name is free from now on."""
    host = tx.host(name)
    if host is None:
        return None
    ended = replace(host, status=status, announcement=b"")
    tx.put_host(ended)
    return ended
