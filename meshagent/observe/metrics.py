"""Every metric of this program in one list, counted in this process, written in the Prometheus text format.

Names are listed so that a typo is an error and the documentation can be made from here.
"""

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """A counter only grows, a gauge goes up and down."""

    COUNTER = "counter"
    GAUGE = "gauge"


@dataclass(frozen=True, slots=True)
class Metric:
    """``name`` in Prometheus' spelling with its unit, ``help`` in one line, ``labels`` that every sample carries."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()


BUILD = Metric(
    "meshagent_build_info",
    Kind.GAUGE,
    "1; versions of agent or hub, and of Envoy",
    ("version", "envoy"),
)
READY = Metric("meshagent_ready", Kind.GAUGE, "1 while this host can serve the mesh")
CONDITIONS = Metric("meshagent_conditions", Kind.GAUGE, "What is wrong now, by code and severity", ("code", "severity"))
CERTIFICATE_EXPIRY = Metric("meshagent_certificate_expiry_timestamp_seconds", Kind.GAUGE, "When the certificate ends")
CONTROL_PLANE_CONNECTED = Metric("meshagent_control_plane_connected", Kind.GAUGE, "1 while the session is up")
CONFIG_AGE = Metric("meshagent_config_age_seconds", Kind.GAUGE, "Since the control plane was heard, 0 while connected")
CAPTURE_ACTIVE = Metric("meshagent_capture_active", Kind.GAUGE, "1 while connections are captured")
CAPTURE_IN_SYNC = Metric("meshagent_capture_in_sync", Kind.GAUGE, "1 while the kernel holds the rules that are wanted")
CAPTURE_BYPASSED = Metric("meshagent_capture_bypassed", Kind.GAUGE, "1 while a dead proxy is bypassed")
AROUND_PROXY = Metric("meshagent_capture_around_proxy", Kind.GAUGE, "Connections around the proxy")
PLAINTEXT_CALLERS = Metric("meshagent_plaintext_callers", Kind.GAUGE, "Addresses that call in plain text")
GUARD_UP = Metric("meshagent_guard_up", Kind.GAUGE, "1 while the guard answers")
GUARD_HEALS = Metric("meshagent_guard_heals_total", Kind.COUNTER, "Times the guard put rules back")
PROXY_READY = Metric("meshagent_proxy_ready", Kind.GAUGE, "1 while Envoy is ready")
PROXY_RESTARTS = Metric("meshagent_proxy_restarts_total", Kind.COUNTER, "Deaths of Envoy that this agent saw")
PROXY_MERGED = Metric("meshagent_proxy_stats_merged", Kind.GAUGE, "1 when Envoy's own statistics follow")
DNS_QUERIES = Metric("meshagent_dns_queries_total", Kind.COUNTER, "UDP questions by who answered", ("answered_by",))
SERVICE_HEALTHY = Metric("meshagent_service_healthy", Kind.GAUGE, "1 while the service's check passes", ("service",))
_UPSTREAM = ("direction", "service", "port", "endpoint")
UPSTREAM_CONNECTIONS = Metric(
    "meshagent_upstream_connections_total",
    Kind.COUNTER,
    "Connections of Envoy to an endpoint that was used",
    _UPSTREAM,
)
UPSTREAM_ACTIVE = Metric("meshagent_upstream_connections_active", Kind.GAUGE, "Of these open now", _UPSTREAM)
UPSTREAM_CONNECT_FAILURES = Metric(
    "meshagent_upstream_connect_failures_total", Kind.COUNTER, "Of these that never came to be", _UPSTREAM
)
UPSTREAM_REQUESTS = Metric(
    "meshagent_upstream_requests_total",
    Kind.COUNTER,
    "Requests to an endpoint; a connection through a tunnel is one",
    _UPSTREAM,
)
UPSTREAM_REQUESTS_ACTIVE = Metric("meshagent_upstream_requests_active", Kind.GAUGE, "Of these open now", _UPSTREAM)
UPSTREAM_ERRORS = Metric(
    "meshagent_upstream_request_errors_total", Kind.COUNTER, "Of these answered with 5xx, or not at all", _UPSTREAM
)
UPSTREAM_HEALTHY = Metric("meshagent_upstream_healthy", Kind.GAUGE, "1 while the endpoint is called", _UPSTREAM)
HUB_HOSTS = Metric("meshagent_hub_hosts", Kind.GAUGE, "Enrolled hosts")
HUB_CONNECTED = Metric("meshagent_hub_hosts_connected", Kind.GAUGE, "Hosts with an open announcement stream")
HUB_SERVICES = Metric("meshagent_hub_services", Kind.GAUGE, "Services of the mesh")
HUB_ENDPOINTS = Metric("meshagent_hub_endpoints", Kind.GAUGE, "Endpoints of all services by health", ("healthy",))
HUB_STREAMS = Metric("meshagent_hub_streams", Kind.GAUGE, "Open discovery streams")
HUB_CONNECTIONS = Metric("meshagent_hub_connections", Kind.GAUGE, "Open TLS connections, handshakes included")
HUB_REFUSING = Metric("meshagent_hub_hosts_refusing", Kind.GAUGE, "Hosts whose proxy refuses something it was sent")
HUB_ROOT_EXPIRY = Metric("meshagent_hub_root_expiry_timestamp_seconds", Kind.GAUGE, "When the CA's certificate ends")

#: Every metric there is, in the order it is exposed.
ALL: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))

_Labels = tuple[str, ...]


class Metrics:
    """The values of one process; safe to use from several threads."""

    def __init__(self, known: Iterable[Metric] = ALL) -> None:
        self._values: dict[Metric, dict[_Labels, float]] = {metric: {} for metric in known}
        self._lock = threading.Lock()

    def add(self, metric: Metric, amount: float = 1, **labels: str) -> None:
        """Count; raises ``KeyError`` for a metric or label that isn't in the list."""
        key = _key(metric, labels)
        with self._lock:
            values = self._values[metric]
            values[key] = values.get(key, 0) + amount

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        """The newest value of a gauge, or a counter that is kept elsewhere."""
        key = _key(metric, labels)
        with self._lock:
            self._values[metric][key] = value

    def remove(self, metric: Metric, **labels: str) -> None:
        """Forget one sample (a service that is gone)."""
        with self._lock:
            self._values[metric].pop(_key(metric, labels), None)

    def value(self, metric: Metric, **labels: str) -> float:
        """The value now; 0 when nothing was counted."""
        with self._lock:
            return self._values[metric].get(_key(metric, labels), 0)

    def exposition(self) -> str:
        """All samples in the Prometheus text format 0.0.4; metrics without samples are left out."""
        with self._lock:
            taken = {metric: dict(values) for metric, values in self._values.items() if values}
        return "".join(_block(metric, values) for metric, values in taken.items())


def _key(metric: Metric, labels: dict[str, str]) -> _Labels:
    if set(labels) != set(metric.labels):
        raise KeyError(f"{metric.name} has the labels {metric.labels}, not {tuple(labels)}")
    return tuple(labels[name] for name in metric.labels)


def _block(metric: Metric, values: dict[_Labels, float]) -> str:
    lines = [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}"]
    for key, value in sorted(values.items()):
        pairs = ",".join(f'{name}="{_escaped(text)}"' for name, text in zip(metric.labels, key, strict=True))
        lines.append(f"{metric.name}{{{pairs}}} {value:.17g}" if pairs else f"{metric.name} {value:.17g}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
