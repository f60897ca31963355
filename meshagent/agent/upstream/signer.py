"""Asks the control plane to sign: Istio's CSR service over mutual TLS, errors sorted by who can mend them.

Source: wire facts of ``istio.v1.auth.IstioCertificateService`` (``CreateCertificate``, unary).
"""

from collections.abc import Awaitable, Callable, Sequence

from meshagent.model.address import HostPort
from meshagent.model.errors import MeshagentError
from meshagent.model.identity import Identity
from meshagent.protocol.pb.istio_ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from meshagent.runtime.latest import Latest

#: One call: calls ``CreateCertificate`` at an address as somebody (``dial.create_certificate``). Raises
#: ``MeshagentError``; ``CallError`` when the service itself answered with a status.
Call = Callable[[HostPort, Identity, IstioCertificateRequest], Awaitable[IstioCertificateResponse]]

#: More elements than a chain has; the sizes of each are judged by who uses them.
MAX_ELEMENTS = 16


class CallError(MeshagentError):
    """The service answered with a gRPC status; ``status`` is its name, ``detail`` its text."""

    def __init__(self, status: str, detail: str) -> None:
        super().__init__("call-failed", f"the control plane answered {status}: {detail[:300]}")
        self.status = status
        self.detail = detail[:300]


class Signer:
    """Implements ``identity.rotator.CertificateSigner``. Addresses are tried in order."""

    def __init__(self, call: Call, addresses: Sequence[HostPort], identity: Latest[Identity]) -> None:
        self._call = call
        self._addresses = tuple(addresses)
        self._identity = identity

    async def sign(self, csr_pem: str) -> Sequence[str]:
        """PEM texts: leaf, intermediates, last the root bundle; validity is the server's default.

        Raises ``MeshagentError``: ``signing-unavailable`` (try again), ``signing-refused`` and ``credential-refused``
        (nothing will change by itself).
        """
        failure: MeshagentError | None = None
        for address in self._addresses:
            try:
                answer = await self._call(address, self._identity.value, IstioCertificateRequest(csr=csr_pem))
            except CallError as error:
                failure = classify(error)
            except MeshagentError as error:
                failure = _unavailable(error.message)
            else:
                return _checked(answer)
            if failure.code != "signing-unavailable":
                break
        raise failure or _unavailable("no address of a control plane is known")


def classify(error: CallError) -> MeshagentError:
    """Wire facts: Unauthenticated is about our credential, PermissionDenied and FailedPrecondition are decisions."""
    if error.status == "UNAUTHENTICATED":
        return MeshagentError(
            "credential-refused",
            f"the control plane does not accept this host's certificate: {error.detail}",
            hint="enrol again with a new token: meshagent enroll HUB TOKEN",
        )
    if error.status in ("PERMISSION_DENIED", "FAILED_PRECONDITION", "INVALID_ARGUMENT"):
        return MeshagentError(
            "signing-refused",
            f"the control plane refuses to sign: {error.detail}",
            hint="ask whoever runs the control plane; its log says why",
        )
    return _unavailable(error.message)


def _checked(answer: IstioCertificateResponse) -> Sequence[str]:
    if not 2 <= len(answer.cert_chain) <= MAX_ELEMENTS:
        raise _unavailable(f"the answer holds {len(answer.cert_chain)} certificates")
    return tuple(answer.cert_chain)


def _unavailable(why: str) -> MeshagentError:
    return MeshagentError("signing-unavailable", f"no certificate was signed: {why}", hint="it is tried again")
