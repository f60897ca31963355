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


CERTIFICATE_EXPIRY = Metric(
    "meshagent_certificate_expiry_timestamp_seconds", Kind.GAUGE, "When the workload certificate ends"
)
ROTATIONS = Metric("meshagent_certificate_rotations_total", Kind.COUNTER, "Tries to renew the certificate", ("result",))
CONTROL_PLANE_CONNECTED = Metric("meshagent_control_plane_connected", Kind.GAUGE, "1 while the session is up")
CONTROL_PLANE_SESSIONS = Metric("meshagent_control_plane_sessions_total", Kind.COUNTER, "Sessions that were opened")
XDS_UPDATES = Metric("meshagent_xds_updates_total", Kind.COUNTER, "Updates by type and outcome", ("type", "result"))
CAPTURE_ACTIVE = Metric("meshagent_capture_active", Kind.GAUGE, "1 while connections are captured")
CAPTURE_APPLIES = Metric("meshagent_capture_applies_total", Kind.COUNTER, "Rulesets handed to the kernel", ("result",))
PROXY_STARTS = Metric("meshagent_proxy_starts_total", Kind.COUNTER, "Times Envoy was started", ("reason",))
DNS_QUERIES = Metric("meshagent_dns_queries_total", Kind.COUNTER, "Questions by who answered", ("answered_by",))
SERVICE_HEALTHY = Metric("meshagent_service_healthy", Kind.GAUGE, "1 while the service's check passes", ("service",))
TASK_FAILURES = Metric("meshagent_task_failures_total", Kind.COUNTER, "Parts that failed and were restarted", ("task",))
HUB_STREAMS = Metric("meshagent_hub_streams", Kind.GAUGE, "Hosts with an open discovery stream")
HUB_CERTIFICATES = Metric("meshagent_hub_certificates_total", Kind.COUNTER, "Certificate requests", ("result",))
HUB_ENROLMENTS = Metric("meshagent_hub_enrolments_total", Kind.COUNTER, "Enrolment requests", ("result",))
HUB_PUSHES = Metric("meshagent_hub_pushes_total", Kind.COUNTER, "Discovery responses by type", ("type",))
HUB_NACKS = Metric("meshagent_hub_nacks_total", Kind.COUNTER, "Responses that a host refused", ("type",))

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
        """The newest value of a gauge."""
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
