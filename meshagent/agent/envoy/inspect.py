"""What the local Envoy says about itself, asked directly: it also answers while the agent is away.

Nothing secret leaves: Envoy masks keys in its dump, and what is called like a secret is masked here once more.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from meshagent.agent.envoy.admin import Admin
from meshagent.agent.envoy.ending import admin_socket
from meshagent.agent.envoy.record import Records
from meshagent.machine import services
from meshagent.model.errors import ExitCode, MeshagentError, UsageError
from meshagent.model.paths import Paths

#: Envoy's own words, least severe first.
LEVELS = ("trace", "debug", "info", "warning", "error", "critical", "off")

#: Dump with 1,000 services: 20 MB, a second of the main thread.
TIMEOUT = 15.0

REDACTED = "[redacted]"
_SECRET = frozenset(
    {"private_key", "private_key_provider", "password", "session_ticket_keys", "generic_secret", "client_secret"}
    | {"hmac_secret", "access_token", "inline_bytes"}
)

#: --section -> the last part of the dump's type.
SECTIONS = {
    "bootstrap": "BootstrapConfigDump",
    "clusters": "ClustersConfigDump",
    "endpoints": "EndpointsConfigDump",
    "listeners": "ListenersConfigDump",
    "routes": "RoutesConfigDump",
    "secrets": "SecretsConfigDump",
}


def living(paths: Paths) -> Admin:
    """The admin interface of the newest epoch. Raises ``MeshagentError`` (exit 4) when no proxy of ours runs."""
    record = Records(paths).load()
    if record is None or not services.alive(record.handle):
        raise MeshagentError(
            "proxy-not-running",
            "no proxy runs on this host",
            hint="see `meshagent status`; the agent starts it",
            exit_code=ExitCode.UNHEALTHY,
        )
    return Admin(admin_socket(paths, record.epoch), TIMEOUT)


async def config(admin: Admin, section: str = "") -> dict[str, Any]:
    """``{"configs": [...]}`` as Envoy dumps it, without secrets; ``section``: one of ``SECTIONS``, empty for all."""
    dump = redacted(await admin.config_dump())
    assert isinstance(dump, dict)
    found = [part for part in dump.get("configs", []) if str(part.get("@type", "")).endswith(SECTIONS.get(section, ""))]
    return {"configs": found}


async def clusters(admin: Admin) -> dict[str, Any]:
    """``{"clusters": [{name, endpoints: [{address, port, healthy, priority, active, total, failed}]}]}``."""
    found = (await admin.clusters()).get("cluster_statuses", [])
    rows = {str(each.get("name", "")): [_endpoint(host) for host in each.get("host_statuses", [])] for each in found}
    return {"clusters": [{"name": name, "endpoints": endpoints} for name, endpoints in sorted(rows.items())]}


async def log_level(admin: Admin, level: str = "") -> dict[str, Any]:
    """Level of each of Envoy's loggers; ``level`` sets all of them first, until the proxy is restarted."""
    if level and level not in LEVELS:
        raise UsageError("bad-level", f"{level[:40]!r} is not a level", hint=f"known: {', '.join(LEVELS)}")
    return {"loggers": dict(sorted((await admin.logging(level)).items()))}


def redacted(value: object) -> object:
    """A copy in which everything that is called like a secret is masked."""
    if isinstance(value, Mapping):
        return {key: REDACTED if key in _SECRET else redacted(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [redacted(inner) for inner in value]
    return value


def _endpoint(host: Mapping[str, Any]) -> dict[str, Any]:
    """proto3 JSON leaves out what is zero."""
    address = host.get("address", {})
    place = address.get("socket_address") or {"address": _other(address), "port_value": 0}
    stats = {stat.get("name"): int(stat.get("value", 0)) for stat in host.get("stats", [])}
    health = host.get("health_status", {})
    return {
        "address": str(place.get("address", "")),
        "port": int(place.get("port_value", 0)),
        "healthy": not any(bool(value) for key, value in health.items() if key.startswith("failed_"))
        and health.get("eds_health_status", "HEALTHY") in ("HEALTHY", "UNKNOWN"),
        "priority": int(host.get("priority", 0)),
        "active": stats.get("cx_active", 0),
        "total": stats.get("cx_total", 0),
        "failed": stats.get("cx_connect_fail", 0),
    }


def _other(address: Mapping[str, Any]) -> str:
    pipe, internal = address.get("pipe", {}), address.get("envoy_internal_address", {})
    return str(pipe.get("path") or internal.get("server_listener_name") or "")


def log_of(paths: Paths) -> Path:
    """Where Envoy writes; only root reads it."""
    return paths.run / "proxy.log"
