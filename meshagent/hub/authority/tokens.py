"""Enrolment tokens: made and revoked. The secret leaves this process once, in the answer; kept is its hash."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from ipaddress import ip_network

from meshagent.hub.store.interface import Transaction
from meshagent.hub.store.rows import TokenRow
from meshagent.model.errors import UsageError
from meshagent.model.identity import SpiffeId
from meshagent.model.names import is_dns_name, require_label
from meshagent.protocol import enrol

MAX_TTL = timedelta(days=365)
MAX_USES = 100_000


@dataclass(frozen=True, slots=True)
class TokenAsk:
    """What an operator wants: see ``hub token create`` in the command-line contract. ``services`` None = any."""

    service_account: str
    namespace: str = "default"
    uses: int = 1
    ttl: timedelta = timedelta(hours=1)
    host: str = ""
    cidrs: tuple[str, ...] = ()
    services: tuple[str, ...] | None = None
    replace: bool = False


def new_token(ask: TokenAsk, ca_hash: str, trust_domain: str, now: datetime) -> tuple[TokenRow, enrol.Token]:
    """Check ``ask`` and make its token: the row to keep, and the token to hand out once.

    Raises ``UsageError`` that names the wrong part.
    """
    _check(ask, trust_domain)
    token = enrol.new_token(ca_hash)
    row = TokenRow(
        id=token.id,
        secret_sha256=enrol.secret_hash(token.secret),
        namespace=ask.namespace,
        service_account=ask.service_account,
        created=now,
        expires=now + ask.ttl,
        uses=ask.uses,
        host=ask.host,
        cidrs=tuple(str(ip_network(cidr, strict=False)) for cidr in ask.cidrs),
        services=ask.services,
        replace=ask.replace,
    )
    return row, token


def _check(ask: TokenAsk, trust_domain: str) -> None:
    require_label(ask.namespace, "namespace")
    SpiffeId(trust_domain, ask.namespace, ask.service_account)
    if not 1 <= ask.uses <= MAX_USES:
        raise UsageError("bad-uses", f"a token has 1 to {MAX_USES} uses, not {ask.uses}")
    if not timedelta(0) < ask.ttl <= MAX_TTL:
        raise UsageError("bad-ttl", f"a token lives up to {MAX_TTL.days} days", hint="write it like --ttl 1h")
    if ask.host and not is_dns_name(ask.host):
        raise UsageError("bad-name", f"{ask.host[:80]!r} can't be a host's name", hint="use a-z, 0-9, '-' and '.'")
    for service in ask.services or ():
        require_label(service, "service")
    for cidr in ask.cidrs:
        try:
            ip_network(cidr, strict=False)
        except ValueError:
            raise UsageError("bad-cidr", f"{cidr[:80]!r} is no network", hint="write it like 10.1.0.0/16") from None


def revoke(tx: Transaction, token_id: str, now: datetime) -> bool:
    """False when there is no such token; revoking twice keeps the first moment."""
    row = tx.token(token_id)
    if row is None:
        return False
    if row.revoked is None:
        tx.put_token(replace(row, revoked=now))
    return True
