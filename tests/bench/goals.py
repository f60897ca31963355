"""What is measured, in which words it is shown, and what it should reach. Data only."""

from dataclasses import dataclass, field
from enum import Enum


class Kind(Enum):
    """How a number is judged."""

    RATIO = "ratio"  # to the direct path of the same round, at least
    ADDED = "added"  # to the direct path of the same round, at most
    AT_MOST = "at most"
    AT_LEAST = "at least"


@dataclass(frozen=True, slots=True)
class PathCase:
    """A load that is sent over several shapes of the data path. ``goals``: shape -> bound."""

    name: str
    title: str
    unit: str
    kind: Kind
    shapes: tuple[str, ...]
    goals: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of the product. ``bound`` None: shown without judgement."""

    name: str
    title: str
    unit: str
    kind: Kind = Kind.AT_MOST
    bound: float | None = None


_HTTP = ("direct", "tcp", "http", "raw")
_REDIS = ("direct", "tcp", "redis", "raw")

PATH_CASES = (
    PathCase(
        "http-keepalive",
        "HTTP, 32 kept connections",
        "requests/s",
        Kind.RATIO,
        _HTTP,
        {"tcp": 0.40},
    ),
    PathCase("http-close", "HTTP, a connection per request", "requests/s", Kind.RATIO, _HTTP, {"http": 0.50}),
    PathCase("redis-1", "Redis GET, 32 connections", "requests/s", Kind.RATIO, _REDIS, {"tcp": 0.45, "redis": 0.75}),
    PathCase("redis-16", "Redis GET, pipeline of 16", "requests/s", Kind.RATIO, _REDIS, {"tcp": 0.40}),
    PathCase("bulk", "one bulk stream", "Mbit/s", Kind.RATIO, ("direct", "tcp", "raw"), {"tcp": 0.35}),
    PathCase("http-p50", "HTTP, one connection, median", "µs", Kind.ADDED, _HTTP, {"tcp": 90.0}),
    PathCase("redis-p50", "Redis GET, one connection, median", "µs", Kind.ADDED, _REDIS, {"tcp": 90.0}),
)

FIGURES = (
    Figure("first-byte", "`enroll` typed → first byte over mutual TLS", "s", bound=2.0),
    Figure("agent-rss", "agent, connected and serving, resident", "MB", bound=64.0),
    Figure("proxy-rss", "Envoy beside it, resident", "MB"),
    Figure("guard-rss", "guard beside it, resident", "MB"),
    Figure("crash", "Envoy killed → Redis answers through the next one", "ms", bound=150.0),
    Figure("adopt", "agent starts again → its Envoy is proven and adopted", "ms", bound=50.0),
    Figure("status", "`meshagent status`", "ms", bound=250.0),
    Figure("version", "`meshagent --version`", "ms", bound=50.0),
    Figure("change-p50", "hub: endpoint change → last of the agents' ACKs, median", "ms"),
    Figure("change-p99", "hub: endpoint change → last of the agents' ACKs, p99", "ms", bound=1000.0),
    Figure("sync", "hub: all agents connect at once → all have everything", "s"),
    Figure("storm", "hub starts again, 1,000 agents and services → all agents have everything", "s", bound=15.0),
    Figure("storm-hub", "of which the hub computes for each agent", "ms"),
    Figure("storm-agents", "of which each simulated agent computes on the same cores", "ms"),
    Figure(
        "served", "one endpoint among 1,000 services changes at the hub → Envoy on a host serves it", "ms", bound=15.0
    ),
    Figure("cold", "agent starts without hub and Envoy, 1,000 services → first proxied answer", "s", bound=1.0),
    Figure("many-rss", "agent with 1,000 services, resident", "MB", bound=64.0),
    Figure("many-idle", "agent with 1,000 services, idle", "% of a core", bound=1.0),
    Figure("hub-rss", "hub without any agent, resident", "MB"),
    Figure("hub-per-agent", "hub, resident, per connected agent", "MB", bound=1.0),
    Figure("names", "mesh names answered on one core", "queries/s", Kind.AT_LEAST, 60_000.0),
    Figure("apply-100", "kernel rules applied, 100 mesh addresses", "ms", bound=5.0),
    Figure("apply-5000", "kernel rules applied, 5,000 mesh addresses", "ms", bound=25.0),
    Figure("policy-100", "policy open to closed, 100 mesh addresses", "ms", bound=5.0),
    Figure("policy-5000", "policy open to closed, 5,000 mesh addresses", "ms", bound=25.0),
    Figure("bypass-flip", "Envoy killed → the kernel lets new connections around it", "ms", bound=10.0),
    Figure("set-update", "one address more among 5,000 (a set is updated)", "ms", bound=1.0),
)
