"""What the hub says of itself at ``--http``: read-only pages for collectors, load balancers and people with curl."""

from collections.abc import Callable
from dataclasses import dataclass

from meshagent.hub.state import MeshState
from meshagent.model.condition import Condition, Severity
from meshagent.observe import metrics
from meshagent.observe.metrics import Metrics
from meshagent.observe.pages import METRICS, Page, Pages, alive, ready_page
from meshagent.runtime.latest import Latest


@dataclass(frozen=True, slots=True)
class Exposed:
    """Where the numbers come from."""

    state: Latest[MeshState]
    conditions: Latest[tuple[Condition, ...]]
    streams: Callable[[], int]
    connections: Callable[[], int]
    refused: Callable[[], int]
    root_expires: Callable[[], float]
    version: str

    def pages(self) -> Pages:
        """Path -> page."""
        return {"/metrics": self.metrics, "/healthz/ready": self.ready, "/healthz/live": alive}

    async def ready(self) -> Page:
        """A hub that is up can serve; what it can't take now is a condition."""
        return ready_page([c.title for c in self.conditions.value if c.severity is Severity.ERROR])

    async def metrics(self) -> Page:
        """The hub's samples."""
        values, state = Metrics(), self.state.value
        values.set(metrics.BUILD, 1, version=self.version, envoy="")
        for condition in self.conditions.value:
            values.add(metrics.CONDITIONS, code=condition.code, severity=condition.severity.value)
        values.set(metrics.HUB_HOSTS, len(state.hosts))
        values.set(metrics.HUB_CONNECTED, sum(host.connected for host in state.hosts))
        values.set(metrics.HUB_SERVICES, len(state.services))
        endpoints = [endpoint for service in state.services for endpoint in service.endpoints]
        values.set(metrics.HUB_ENDPOINTS, sum(e.healthy for e in endpoints), healthy="true")
        values.set(metrics.HUB_ENDPOINTS, sum(not e.healthy for e in endpoints), healthy="false")
        values.set(metrics.HUB_STREAMS, self.streams())
        values.set(metrics.HUB_CONNECTIONS, self.connections())
        values.set(metrics.HUB_REFUSING, self.refused())
        values.set(metrics.HUB_ROOT_EXPIRY, self.root_expires())
        return Page(values.exposition(), kind=METRICS)
