"""Enrolment and certificates on the wire: check cheaply first, then one transaction, then the answer; all audited.

What a caller may learn is what ``policy.py`` says. Every refusal carries the gRPC status by which agents (ours, and
Istio's) know whether to try again.
"""

from collections.abc import Callable
from dataclasses import dataclass

import grpc
import structlog

from meshagent.hub.authority.enrolment import HostFacts, Issued, Signer, enrol, renew
from meshagent.hub.authority.issue import MAX_PEM_BYTES, RefusedCsr, spki_sha256
from meshagent.hub.authority.policy import EnrolmentAsk, Kind, Refusal, check_clock, decide_validity
from meshagent.hub.authority.ratelimit import RateLimit, source_key
from meshagent.hub.store.interface import Store
from meshagent.hub.store.rows import AuditRow, HostRow
from meshagent.hub.store.trouble import StoreError
from meshagent.model.address import IPAddress, parse_ip
from meshagent.model.errors import MeshagentError
from meshagent.protocol import signing
from meshagent.protocol.enrol import secret_hash
from meshagent.protocol.pb.istio_ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from meshagent.protocol.pb.meshagent_v1_pb2 import EnrollRequest, EnrollResponse
from meshagent.runtime.clock import Clock
from meshagent.transport.grpc_server import Call, Handler, RefusedCallError, Unary
from meshagent.transport.methods import CREATE_CERTIFICATE, ENROLL

log = structlog.get_logger()

_STATUS = {
    Kind.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    Kind.DENIED: grpc.StatusCode.PERMISSION_DENIED,
    Kind.PRECONDITION: grpc.StatusCode.FAILED_PRECONDITION,
    Kind.CONFLICT: grpc.StatusCode.ALREADY_EXISTS,
    Kind.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    Kind.BUSY: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
#: A whole request: two PEM blocks and change. gRPC itself stops at its server's bound.
MAX_REQUEST_BYTES = 4 * MAX_PEM_BYTES
MAX_ADDRESSES = 64
MAX_TEXT = 253


@dataclass(frozen=True, slots=True)
class AuthorityService:
    """``enrolled`` is told of every enrolment after it is on disk: (host, the enrolment it took over)."""

    store: Store
    clock: Clock
    signer: Signer
    zone: str
    limit: RateLimit
    enrolled: Callable[[HostRow, HostRow | None], None]

    def handlers(self) -> list[Handler]:
        """What the gRPC server serves of this."""
        return [Unary(ENROLL, self.enroll), Unary(CREATE_CERTIFICATE, self.create_certificate)]

    async def enroll(self, request: EnrollRequest, call: Call) -> EnrollResponse:
        """``meshagent.v1.Enrolment/Enroll``: no client certificate, the token is the credential."""
        source = source_of(call)
        if not self.limit.allow(source, self.clock.monotonic()):
            # not audited one by one: a flood must not become a flood of disk writes
            log.warning("hub-enrolment-rate-limited", source=source_key(source))
            hint = "wait a few seconds, then try again"
            raise refused(Refusal(Kind.BUSY, "rate-limited", "too many enrolments from this address", hint=hint))
        try:
            issued = await self._enrol(request, source)
        except MeshagentError as error:
            await self._audit("enroll", error.code, request.host_name, source, request.token_id)
            raise refused(error) from error
        await self._audit("enroll", "ok", issued.host.name, source, request.token_id)
        self.enrolled(issued.host, issued.ended)
        return self._answer(issued)

    async def _enrol(self, request: EnrollRequest, source: IPAddress) -> Issued:
        now = self.clock.now()
        _check_sizes(request)
        check_clock(request.unix_ms, now)
        self._check_possession(request)
        ask = EnrolmentAsk(
            token_id=request.token_id,
            secret_sha256=secret_hash(request.token_secret),
            host_name=request.host_name,
            host_key_sha256=spki_sha256(signing.load_public(request.host_key_pem)).hex(),
            source=source,
        )
        facts = HostFacts(
            csr_pem=request.csr_pem,
            host_key_pem=request.host_key_pem,
            addresses=tuple(str(ip) for text in request.addresses if (ip := parse_ip(text)) is not None),
            boot_id=request.boot_id,
            agent_version=request.agent_version,
        )
        return await self.store.transact(lambda tx: enrol(tx, ask, facts, self.signer, now))

    def _check_possession(self, request: EnrollRequest) -> None:
        """The host key signed this very request for this very CA; the CSR's own signature is ``read_csr``'s matter."""
        message = signing.enrolment_transcript(
            ca_hash=self.signer.roots.ca_hash,
            token_id=request.token_id,
            csr_pem=request.csr_pem,
            host_key_pem=request.host_key_pem,
        )
        signing.verify(request.host_key_pem, request.host_key_signature, message)

    def _answer(self, issued: Issued) -> EnrollResponse:
        return EnrollResponse(
            host_name=issued.host.name,
            namespace=issued.host.namespace,
            service_account=issued.host.service_account,
            trust_domain=self.signer.trust_domain,
            zone=self.zone,
            cert_chain=issued.chain,
            unix_ms=int(self.clock.now().timestamp() * 1000),
        )

    async def create_certificate(self, request: IstioCertificateRequest, call: Call) -> IstioCertificateResponse:
        """Istio's ``CreateCertificate``: who may have what is known from the client certificate alone."""
        now = self.clock.now()
        try:
            validity = decide_validity(request.validity_duration)
            if not call.peer.serial:
                hint = "enroll this host with a token"
                raise Refusal(Kind.UNAUTHENTICATED, "no-certificate", "no client certificate was shown", hint=hint)
            issued = await self.store.transact(
                lambda tx: renew(tx, call.peer.serial, request.csr, self.signer, now, validity)
            )
        except MeshagentError as error:
            await self._audit("renew", error.code, ",".join(call.peer.uris), source_of(call), call.peer.serial)
            raise refused(error) from error
        log.info("hub-certificate-renewed", host=issued.host.name)
        return IstioCertificateResponse(cert_chain=issued.chain)

    async def _audit(self, action: str, outcome: str, subject: str, source: IPAddress, detail: str) -> None:
        """An attempt, on disk; an audit that can't be written must not look like a refusal, so it is logged instead."""
        row = AuditRow(self.clock.now(), action, outcome, shown(subject), str(source), shown(detail))
        log.info("hub-audit", action=action, outcome=outcome, subject=row.subject, source=row.source)
        try:
            await self.store.transact(lambda tx: tx.add_audit(row))
        except MeshagentError as error:
            log.error("hub-audit-not-written", code=error.code, error=error.message)


def _check_sizes(request: EnrollRequest) -> None:
    texts = (request.token_id, request.token_secret, request.host_name, request.boot_id, request.agent_version)
    fits = (
        request.ByteSize() <= MAX_REQUEST_BYTES
        and len(request.addresses) <= MAX_ADDRESSES
        and all(len(text) <= MAX_TEXT and text.isprintable() for text in texts)
    )
    if not fits:
        raise Refusal(Kind.INVALID, "bad-request", "the enrolment request has a field that is too long")


def source_of(call: Call) -> IPAddress:
    """Where a call comes from; an IPv4 client on a dual-stack socket counts as IPv4."""
    address = parse_ip(call.peer.address)
    if address is None:
        raise RefusedCallError(grpc.StatusCode.UNAUTHENTICATED, "unknown-connection", "this call has no source address")
    mapped = address.ipv4_mapped if address.version == 6 else None
    return mapped or address


def refused(error: MeshagentError) -> MeshagentError:
    """The same refusal with the gRPC status that says whether to try again."""
    if isinstance(error, RefusedCallError):
        return error
    if isinstance(error, Refusal):
        status = _STATUS[error.kind]
    elif isinstance(error, RefusedCsr) or error.code in ("bad-signature", "bad-host-key"):
        status = grpc.StatusCode.INVALID_ARGUMENT
    elif isinstance(error, StoreError):
        status = grpc.StatusCode.UNAVAILABLE
    else:
        status = grpc.StatusCode.FAILED_PRECONDITION
    return RefusedCallError(status, error.code, error.message, hint=error.hint)


def shown(text: str, limit: int = 253) -> str:
    """Text from elsewhere, fit for the audit and for screens."""
    return "".join(c if c.isprintable() else "?" for c in text[:limit])
