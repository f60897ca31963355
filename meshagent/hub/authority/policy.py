"""Who may enrol as what, and who may renew: rows and facts in, a decision or a refusal out. Pure.

The order of the checks is part of the policy: before the secret is proven nothing about the token, hosts or other
tokens can be learned; a retry by the same host key is the same use, so a broken connection burns nothing.
"""

import hmac
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from ipaddress import ip_network

from meshagent.hub.store.rows import HostRow, HostStatus, TokenRow, TokenUseRow
from meshagent.model.address import IPAddress
from meshagent.model.errors import MeshagentError
from meshagent.model.names import is_dns_name

#: Beyond this Envoy on the host would judge fresh certificates as not yet valid or expired soon after.
MAX_CLOCK_DIFFERENCE = timedelta(minutes=5)
DEFAULT_VALIDITY = timedelta(days=7)
MAX_VALIDITY = timedelta(days=30)


class Kind(StrEnum):
    """What sort of refusal, for the wire (see wire.md's error table): retrying helps only with ``BUSY``."""

    UNAUTHENTICATED = "unauthenticated"
    DENIED = "denied"
    PRECONDITION = "precondition"
    CONFLICT = "conflict"
    INVALID = "invalid"
    BUSY = "busy"


class Refusal(MeshagentError):  # noqa: N818 - an error to the one who asks, a decision to us
    """The answer is no; ``kind`` says how the wire puts it."""

    def __init__(self, kind: Kind, code: str, message: str, *, hint: str = "") -> None:
        super().__init__(code, message, hint=hint)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class EnrolmentAsk:
    """What a host asks for and where it asks from; possession of both keys is already proven."""

    token_id: str
    secret_sha256: str
    host_name: str
    host_key_sha256: str
    source: IPAddress


@dataclass(frozen=True, slots=True)
class EnrolmentGrant:
    """``new_use``: this host key uses the token for the first time. ``replaces``: the enrolment that ends by this.
    ``keeps``: the enrolment that simply goes on (same host key, same identity)."""

    host_name: str
    namespace: str
    service_account: str
    services: tuple[str, ...] | None
    new_use: bool
    replaces: HostRow | None = None
    keeps: HostRow | None = None


def check_clock(unix_ms: int, now: datetime) -> None:
    """Refuses a host whose clock is more than five minutes away from ours."""
    seconds = round(unix_ms / 1000 - now.timestamp())  # plain numbers: the host may claim any 64 bits
    if abs(seconds) > MAX_CLOCK_DIFFERENCE.total_seconds():
        way = "ahead of" if seconds > 0 else "behind"
        raise Refusal(
            Kind.PRECONDITION,
            "clock-difference",
            f"this host's clock is {abs(seconds)} s {way} the hub's",
            hint="set the clock (timedatectl set-ntp true), then enroll again",
        )


def check_token(ask: EnrolmentAsk, token: TokenRow | None, now: datetime) -> TokenRow:
    """The token, proven by its secret and still good; unknown, wrong secret: one answer in constant time."""
    expected = token.secret_sha256 if token else "0" * 64
    proven = hmac.compare_digest(expected.encode(), ask.secret_sha256.encode())
    if token is None or not proven:
        raise Refusal(
            Kind.UNAUTHENTICATED,
            "bad-token",
            "the hub does not know this token",
            hint="copy the whole token, or make a new one on the hub: meshagent hub token create",
        )
    if token.revoked is not None:
        raise _unusable("token-revoked", f"token {token.id} was revoked")
    if now >= token.expires:
        raise _unusable("token-expired", f"token {token.id} expired at {token.expires:%Y-%m-%dT%H:%M:%SZ}")
    if token.cidrs and not any(ask.source in ip_network(cidr) for cidr in token.cidrs):
        raise Refusal(
            Kind.DENIED, "token-elsewhere", f"token {token.id} is not for hosts at {ask.source}", hint=_NEW_TOKEN
        )
    return token


_NEW_TOKEN = "make a new one on the hub: meshagent hub token create"  # noqa: S105 - a hint, no secret


def _unusable(code: str, message: str) -> Refusal:
    return Refusal(Kind.DENIED, code, message, hint=_NEW_TOKEN)


def decide_enrolment(
    ask: EnrolmentAsk, token: TokenRow, uses: tuple[TokenUseRow, ...], current: HostRow | None, host_name: str
) -> EnrolmentGrant:
    """What a proven token grants. ``host_name`` is ``wanted_name``'s; ``current`` the active host of that name."""
    earlier = next((u for u in uses if u.host_key_sha256 == ask.host_key_sha256), None)
    if earlier and earlier.host_name != host_name:
        raise Refusal(
            Kind.CONFLICT,
            "host-name-changed",
            f"this host used the token already, under the name {earlier.host_name}",
            hint=f"enroll with --name {earlier.host_name}, or {_NEW_TOKEN}",
        )
    if earlier is None and len(uses) >= token.uses:
        raise _unusable("token-used", f"token {token.id} is used up")
    grant = EnrolmentGrant(host_name, token.namespace, token.service_account, token.services, earlier is None)
    return _settle_name(ask, token, grant, current)


def wanted_name(ask: EnrolmentAsk, token: TokenRow) -> str:
    """The name the host will have: the token's, else the wanted one, else made of service account and key."""
    if token.host and ask.host_name not in ("", token.host):
        raise Refusal(
            Kind.DENIED,
            "token-other-host",
            f"token {token.id} is for host {token.host}, this host calls itself {ask.host_name}",
            hint=f"enroll with --name {token.host}",
        )
    name = token.host or ask.host_name or f"{token.service_account}-{ask.host_key_sha256[:8]}"
    if not is_dns_name(name):
        raise Refusal(
            Kind.INVALID,
            "bad-name",
            f"{name[:80]!r} can't be a host's name",
            hint="enroll with --name NAME: a-z, 0-9, '-' and '.'",
        )
    return name


def _settle_name(ask: EnrolmentAsk, token: TokenRow, grant: EnrolmentGrant, current: HostRow | None) -> EnrolmentGrant:
    if current is None:
        return grant
    same_key = current.host_key_sha256 == ask.host_key_sha256
    same_identity = (current.namespace, current.service_account) == (grant.namespace, grant.service_account)
    if same_key and same_identity:
        return EnrolmentGrant(
            grant.host_name, grant.namespace, grant.service_account, grant.services, grant.new_use, keeps=current
        )
    if same_key or token.replace:
        return EnrolmentGrant(
            grant.host_name, grant.namespace, grant.service_account, grant.services, grant.new_use, replaces=current
        )
    raise Refusal(
        Kind.CONFLICT,
        "host-name-taken",
        f"another host is enrolled as {grant.host_name}",
        hint="choose another --name, or make a token with --replace, or first: meshagent hub host revoke NAME",
    )


def check_caller(host: HostRow | None) -> HostRow:
    """The enrolled host behind a client certificate of ours; refuses one that left, was replaced or revoked."""
    if host is None:
        raise Refusal(
            Kind.UNAUTHENTICATED,
            "unknown-host",
            "the hub does not know this certificate",
            hint="a host that joined after the backup which the hub was restored from: enroll it again",
        )
    if host.status is not HostStatus.ACTIVE:
        raise Refusal(
            Kind.DENIED,
            f"host-{host.status}",
            f"the enrolment of host {host.name} has ended ({host.status})",
            hint="enroll it again with a new token",
        )
    return host


def decide_validity(requested_seconds: int) -> timedelta:
    """Seven days unless the host asks for less or more, up to thirty (Istio: ≤ 0 is the default, too much an error)."""
    if requested_seconds <= 0:
        return DEFAULT_VALIDITY
    if requested_seconds > MAX_VALIDITY.total_seconds():
        raise Refusal(
            Kind.INVALID,
            "validity-too-long",
            f"a certificate for {requested_seconds} s was asked for, {MAX_VALIDITY.days} days is the most",
        )
    return timedelta(seconds=requested_seconds)
