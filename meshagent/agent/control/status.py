"""The answer to ``status``: one document from what every part knows. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from meshagent.agent.capture.controller import CaptureStatus
from meshagent.agent.capture.status import Restored
from meshagent.agent.capture.verify import Caller
from meshagent.agent.envoy.state import ProxyState
from meshagent.agent.identity.keystore import Enrolment
from meshagent.agent.upstream.state import UpstreamState
from meshagent.model.condition import Condition
from meshagent.model.identity import Identity
from meshagent.model.posture import Posture
from meshagent.model.service import DeclaredService, ServiceHealth
from meshagent.protocol.pb.meshagent_v1_pb2 import AnnouncementResult


@dataclass(frozen=True, slots=True)
class Known:
    """Everything ``status`` shows, as the parts published it."""

    enrolment: Enrolment
    identity: Identity
    renew_at: datetime
    posture: Posture
    upstream: UpstreamState
    capture: CaptureStatus
    suspended_since: datetime | None
    proxy: ProxyState
    services: tuple[DeclaredService, ...]
    health: Mapping[str, ServiceHealth]
    announced: AnnouncementResult | None
    callers: tuple[Caller, ...]
    around_proxy: int
    conditions: tuple[Condition, ...]
    config_age: float
    now: datetime


def build_status(known: Known) -> dict[str, Any]:
    """The contract's shape (docs/cli.md)."""
    return {
        "enrolled": True,
        "host": known.enrolment.host_name,
        "posture": known.posture.value,
        "identity": {
            "spiffe_id": str(known.identity.spiffe_id),
            "not_after": rfc3339(known.identity.not_after),
            "renew_at": rfc3339(known.renew_at),
        },
        "control_plane": _control_plane(known),
        "capture": {
            **_capture(known.capture),
            "suspended_since": rfc3339(known.suspended_since),
            "around_proxy": known.around_proxy,
        },
        "proxy": {
            "pid": known.proxy.pid or None,
            "version": known.proxy.version,
            "ready": known.proxy.ready,
            "epoch": known.proxy.epoch,
            "restarts": known.proxy.restarts,
            "hangs": known.capture.hangs,
        },
        "services": [_service(service, known) for service in known.services],
        "plaintext_callers": list(_callers(known)),
        "conditions": [_condition(condition) for condition in known.conditions],
    }


def rfc3339(when: datetime | None) -> str | None:
    """RFC 3339 in UTC with seconds, None for no time."""
    return when.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z") if when else None


def from_epoch(seconds: float | None) -> str | None:
    """RFC 3339 of seconds since 1970."""
    return rfc3339(datetime.fromtimestamp(seconds, UTC)) if seconds else None


def _control_plane(known: Known) -> dict[str, Any]:
    state = known.upstream
    address = state.address or (known.enrolment.hub_addresses[0] if known.enrolment.hub_addresses else None)
    return {
        "kind": "hub",
        "address": str(address) if address else "",
        "connected": state.connected,
        "since": rfc3339(state.since),
        "last_error": "" if state.connected else state.last_error,
        "config_age": round(known.config_age, 3),
    }


def _capture(status: CaptureStatus) -> dict[str, Any]:
    return {
        "backend": status.backend,
        "active": status.active,
        "in_sync": status.in_sync,
        "ports": list(status.ports),
        "strict_ports": list(status.strict_ports),
        "redirected": [
            {"port": each.port, "reason": each.reason.value, "text": each.reason.text, "plain": each.plain}
            for each in status.redirected
        ],
        "spared": [{"port": spared.port, "reason": spared.reason} for spared in status.spared],
        "refused": [
            {"address": str(claim.address.ip), "port": claim.address.port, "reason": claim.reason}
            for claim in status.refused
        ],
        "pending_confirm_until": from_epoch(status.pending_confirm_until),
        "bypassed_since": from_epoch(status.bypassed_since),
        "rolled_back": status.rolled_back,
        "restored": _restored(status.restored),
    }


def _restored(found: Restored | None) -> dict[str, Any] | None:
    return {**asdict(found), "at": from_epoch(found.at)} if found else None


def _service(service: DeclaredService, known: Known) -> dict[str, Any]:
    health = known.health.get(service.name, ServiceHealth(False, "not checked yet"))
    answers = known.announced.services if known.announced else ()
    answer = next((a for a in answers if a.name == service.name), None)
    refused = answer.reason if answer is not None and not answer.accepted else ""
    return {
        "name": service.name,
        "host": answer.host if answer is not None and answer.accepted else "",
        "port": service.port,
        "protocol": service.protocol.value,
        "healthy": health.healthy,
        "reason": refused or health.reason,
    }


def _callers(known: Known) -> Iterable[dict[str, Any]]:
    names = {service.target_port: service.name for service in known.services}
    for caller in known.callers:
        yield {
            "service": names.get(caller.port, str(caller.port)),
            "address": str(caller.address),
            "count": caller.count,
            "refused": caller.refused,
            "last_seen": rfc3339(known.now - timedelta(seconds=caller.idle)),
        }


def _condition(condition: Condition) -> dict[str, Any]:
    return {
        "code": condition.code,
        "severity": condition.severity.value,
        "title": condition.title,
        "text": condition.text,
        "since": rfc3339(condition.since),
    }
