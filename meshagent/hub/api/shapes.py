"""The JSON shapes of the administrators' socket, as the command-line contract writes them. Pure.

Times are RFC 3339 UTC with whole seconds; keys are stable.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Protocol

from meshagent.hub.registry.assemble import LiveHost
from meshagent.hub.state import MeshEndpoint, MeshService
from meshagent.hub.store.rows import AuditRow, TokenRow, TokenUseRow
from meshagent.model.condition import Condition
from meshagent.model.identity import SpiffeId


class Refused(Protocol):
    """A part of the configuration that a host refused (``hub.discovery.rejections.Rejection``)."""

    @property
    def kind(self) -> str: ...
    @property
    def resource(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def since(self) -> datetime: ...


def time_text(at: datetime) -> str:
    """``2026-01-02T03:04:05Z``."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def condition(held: Condition) -> dict[str, Any]:
    """One thing that is wrong with the hub now."""
    return {
        "code": held.code,
        "severity": held.severity.value,
        "title": held.title,
        "text": held.text,
        "since": time_text(held.since),
    }


def token(row: TokenRow, uses: tuple[TokenUseRow, ...], now: datetime) -> dict[str, Any]:
    """One line of ``hub token list``: never the secret, not even its hash."""
    return {
        "id": row.id,
        "state": _token_state(row, uses, now),
        "namespace": row.namespace,
        "service_account": row.service_account,
        "uses": row.uses,
        "used": len(uses),
        "hosts": [{"name": use.host_name, "at": time_text(use.at)} for use in uses],
        "created_at": time_text(row.created),
        "expires_at": time_text(row.expires),
        "host": row.host,
        "cidrs": list(row.cidrs),
        "services": None if row.services is None else list(row.services),
        "replace": row.replace,
    }


def _token_state(row: TokenRow, uses: tuple[TokenUseRow, ...], now: datetime) -> str:
    if row.revoked is not None:
        return "revoked"
    if len(uses) >= row.uses:
        return "used"
    return "expired" if now >= row.expires else "valid"


def host(live: LiveHost, trust_domain: str, now: datetime, refused: Iterable[Refused] = ()) -> dict[str, Any]:
    """One line of ``hub hosts``; who is connected is seen now."""
    said = live.announced
    return {
        "name": live.row.name,
        "spiffe_id": str(SpiffeId(trust_domain, live.row.namespace, live.row.service_account)),
        "address": str(live.addresses[0]) if live.addresses else "",
        "addresses": [str(address) for address in live.addresses],
        "connected": live.connected,
        "stale": live.stale,
        "last_seen": time_text(now if live.connected else live.row.last_seen),
        "enrolled_at": time_text(live.row.created),
        "agent_version": live.row.agent_version,
        "envoy_version": said.envoy_version if said else "",
        "posture": said.posture.value if said else "",
        "locality": said.locality if said else "",
        "services": [s.declared.name for s in live.accepted],
        "conditions": [
            {"code": c.code, "severity": c.severity, "text": c.text} for c in (said.conditions if said else ())
        ],
        "rejections": [
            {
                "kind": r.kind,
                "resource": r.resource,
                "version": r.version,
                "reason": r.reason,
                "since": time_text(r.since),
            }
            for r in refused
        ],
    }


def service(mesh: MeshService) -> dict[str, Any]:
    """One line of ``hub services``."""
    return {
        "host": mesh.host,
        "name": mesh.name,
        "namespace": mesh.namespace,
        "ports": [p.number for p in mesh.ports],
        "protocols": {str(p.number): p.protocol.value for p in mesh.ports},
        "addresses": [str(mesh.virtual4), str(mesh.virtual6)],
        "claimed": [str(address) for address in mesh.claimed],
        "service_accounts": list(mesh.service_accounts),
        "mtls": mesh.mtls,
        "endpoints": [_endpoint(endpoint) for endpoint in mesh.endpoints],
    }


def _endpoint(endpoint: MeshEndpoint) -> dict[str, Any]:
    return {
        "host": endpoint.host_name,
        "address": str(endpoint.addresses[0]) if endpoint.addresses else "",
        "port": endpoint.port,
        "target_port": endpoint.target_port,
        "healthy": endpoint.healthy,
        "stale": endpoint.stale,
        "weight": endpoint.weight,
        "priority": endpoint.priority,
        "locality": endpoint.locality,
        "spiffe_id": endpoint.spiffe_id,
    }


def audit(row: AuditRow) -> dict[str, Any]:
    """One line of ``hub audit``."""
    return {
        "at": time_text(row.at),
        "action": row.action,
        "outcome": row.outcome,
        "subject": row.subject,
        "source": row.source,
        "detail": row.detail,
    }
