"""What the agent says of itself at ``metrics.listen``: read from its parts when somebody asks, Envoy's own behind it.

Nothing is counted twice: parts keep their numbers for ``status`` anyhow. Envoy's statistics come through its admin
socket, so that the proxy needs no port of its own for them.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC
from typing import Any

from meshagent.agent.control.status import Known
from meshagent.agent.envoy.admin import Admin
from meshagent.agent.envoy.upstreams import Reading, Upstream
from meshagent.agent.names.server import Counts
from meshagent.model.errors import MeshagentError
from meshagent.observe import metrics
from meshagent.observe.metrics import Metrics
from meshagent.observe.pages import METRICS, Page, Pages, alive, ready_page


@dataclass(frozen=True, slots=True)
class Exposed:
    """Where the numbers come from. ``guard``: its state, blocking; ``admin``: of the newest Envoy."""

    known: Callable[[], Awaitable[Known]]
    guard: Callable[[], dict[str, Any]]
    queries: Callable[[], Counts]
    admin: Callable[[], Admin]
    version: str

    def pages(self) -> Pages:
        """Path -> page."""
        return {"/metrics": self.metrics, "/healthz/ready": self.ready, "/healthz/live": alive}

    async def metrics(self) -> Page:
        """Our own samples, then Envoy's where it answers."""
        values = numbers(await self.known(), self.queries(), self.version)
        try:
            values.set(metrics.GUARD_HEALS, (await asyncio.to_thread(self.guard))["heals"])
            values.set(metrics.GUARD_UP, 1)
        except MeshagentError:
            values.set(metrics.GUARD_UP, 0)
        try:
            merged = await self.admin().prometheus()
            endpoints = Reading()
            await self.admin().clusters_text(endpoints.feed)
            set_upstreams(values, endpoints.used())
        except MeshagentError:
            merged = b""
        values.set(metrics.PROXY_MERGED, bool(merged))
        return Page(values.exposition().encode() + merged, kind=METRICS)

    async def ready(self) -> Page:
        """Whether this host can serve the mesh now."""
        return ready_page(not_ready(await self.known()))


_UPSTREAM_NUMBERS = {
    "cx_total": metrics.UPSTREAM_CONNECTIONS,
    "cx_active": metrics.UPSTREAM_ACTIVE,
    "cx_connect_fail": metrics.UPSTREAM_CONNECT_FAILURES,
    "rq_total": metrics.UPSTREAM_REQUESTS,
    "rq_active": metrics.UPSTREAM_REQUESTS_ACTIVE,
    "rq_error": metrics.UPSTREAM_ERRORS,
}


def set_upstreams(values: Metrics, found: Iterable[Upstream]) -> None:
    """What each endpoint was used for."""
    for each in found:
        where = {
            "direction": each.direction,
            "service": each.host,
            "port": str(each.port),
            "endpoint": each.endpoint,
        }
        values.set(metrics.UPSTREAM_HEALTHY, each.healthy, **where)
        for name, metric in _UPSTREAM_NUMBERS.items():
            values.add(metric, each.numbers.get(name, 0), **where)  # two ways may lead to one endpoint


def not_ready(known: Known) -> list[str]:
    """What keeps this host from serving the mesh; the control plane isn't needed for it."""
    reasons = []
    if not known.proxy.ready:
        reasons.append("the proxy is not ready")
    if known.identity.not_after <= known.now:
        reasons.append("the certificate has expired")
    if any(condition.code == "config-too-old" for condition in known.conditions):
        reasons.append("what is known of the mesh is older than it may be")
    if known.capture.bypassed_since is not None:
        reasons.append("connections go around the proxy")
    return reasons


def numbers(known: Known, queries: Counts, version: str) -> Metrics:
    """Samples of what ``status`` shows."""
    values = Metrics()
    values.set(metrics.BUILD, 1, version=version, envoy=known.proxy.version)
    values.set(metrics.READY, not not_ready(known))
    for condition in known.conditions:
        values.add(metrics.CONDITIONS, code=condition.code, severity=condition.severity.value)
    values.set(metrics.CONTROL_PLANE_CONNECTED, known.upstream.connected)
    values.set(metrics.CONFIG_AGE, round(known.config_age, 3))
    values.set(metrics.CERTIFICATE_EXPIRY, known.identity.not_after.astimezone(UTC).timestamp())
    values.set(metrics.CAPTURE_ACTIVE, known.capture.active)
    values.set(metrics.CAPTURE_IN_SYNC, known.capture.in_sync)
    values.set(metrics.CAPTURE_BYPASSED, known.capture.bypassed_since is not None)
    values.set(metrics.AROUND_PROXY, known.around_proxy)
    values.set(metrics.PROXY_READY, known.proxy.ready)
    values.set(metrics.PROXY_RESTARTS, known.proxy.restarts)
    values.set(metrics.DNS_QUERIES, queries.answered, answered_by="mesh")
    values.set(metrics.DNS_QUERIES, queries.forwarded, answered_by="nameserver")
    values.set(metrics.DNS_QUERIES, queries.dropped, answered_by="nobody")
    for service in known.services:
        health = known.health.get(service.name)
        values.set(metrics.SERVICE_HEALTHY, bool(health and health.healthy), service=service.name)
    values.set(metrics.PLAINTEXT_CALLERS, len(known.callers))
    return values
