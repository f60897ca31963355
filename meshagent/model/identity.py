"""Who a workload is: SPIFFE IDs, and the key, chain and bundle that prove it as one set."""

import re
from dataclasses import dataclass, field
from datetime import datetime

from meshagent.model.errors import UsageError

_TRUST_DOMAIN = re.compile(r"[a-z0-9]([a-z0-9._-]{0,253}[a-z0-9])?", re.ASCII)
_SEGMENT = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9._-]{0,251}[a-zA-Z0-9])?", re.ASCII)


@dataclass(frozen=True, slots=True)
class SpiffeId:
    """``spiffe://<trust domain>/ns/<namespace>/sa/<service account>``, Istio's form of a SPIFFE ID."""

    trust_domain: str
    namespace: str
    service_account: str

    def __post_init__(self) -> None:
        if not _TRUST_DOMAIN.fullmatch(self.trust_domain):
            raise UsageError("bad-trust-domain", f"{self.trust_domain!r} is not a trust domain")
        for label in (self.namespace, self.service_account):
            if not _SEGMENT.fullmatch(label):
                raise UsageError("bad-identity", f"{label!r} is not a namespace or service account name")

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain}/ns/{self.namespace}/sa/{self.service_account}"


def parse_spiffe_id(text: str) -> SpiffeId:
    """Parse Istio's form; raises ``UsageError`` otherwise (SPIFFE-ID section 2)."""
    match = re.fullmatch(r"spiffe://([^/]+)/ns/([^/]+)/sa/([^/]+)", text, re.ASCII)
    if not match:
        raise UsageError("bad-identity", f"{text!r} is not spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT")
    return SpiffeId(*match.groups())


@dataclass(frozen=True, slots=True)
class Identity:
    """A workload's SVID with its key and the bundle to judge peers by; switched as one set.

    ``chain_pem`` is leaf first, without the root; ``bundle_pem`` one or more roots. Times are aware UTC.
    The key never shows in ``repr``.
    """

    spiffe_id: SpiffeId
    serial: str
    not_before: datetime
    not_after: datetime
    chain_pem: str
    bundle_pem: str
    key_pem: bytes = field(repr=False)
