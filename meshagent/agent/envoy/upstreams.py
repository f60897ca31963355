"""What this host's services were used for, by endpoint: read from Envoy's ``/clusters`` page. Pure.

Envoy keeps a few numbers of each endpoint in any case, and writes them down as ``CLUSTER::ADDRESS::NAME::VALUE``
(server/admin/clusters_handler.cc, 1.40.0). Clusters are named in Istio's way: ``outbound|PORT||HOST``,
``inbound|PORT||HOST``; others (those that pass on, the agent's own) are not services and left out.
"""

from dataclasses import dataclass, field

#: Numbers of connections, and of requests: a tunnel is one.
NUMBERS = ("cx_total", "cx_active", "cx_connect_fail", "rq_total", "rq_active", "rq_error")
_HEALTH = b"health_flags"
_TAKEN = frozenset({_HEALTH, *(name.encode() for name in NUMBERS)})
_USED = ("cx_total", "rq_total")
_DIRECTIONS = ("outbound", "inbound")

#: More than that no page shows; a control plane may have sent anything.
MAX_UPSTREAMS = 10_000


@dataclass(slots=True)
class Upstream:
    """One endpoint of a service's port that was used. ``numbers``: those that aren't 0, by Envoy's names."""

    direction: str
    host: str
    port: int
    endpoint: str
    healthy: bool = True
    numbers: dict[str, int] = field(default_factory=dict)


class Reading:
    """Takes the page piece by piece: with 1,000 services it is 2.8 MB, nearly all of it zeros. Lines of any other form
    are skipped."""

    def __init__(self) -> None:
        self._rest = b""
        self._found: dict[bytes, Upstream | None] = {}

    def feed(self, data: bytes) -> None:
        """The next bytes of the page."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if not line.endswith((b"::0", b"::healthy")):
                self._take(line)

    def used(self) -> list[Upstream]:
        """Endpoints that had a connection or a request since this proxy started, in the page's order; at most
        ``MAX_UPSTREAMS``."""
        services = (each for each in self._found.values() if each is not None)
        return [each for each in services if any(each.numbers.get(name) for name in _USED)][:MAX_UPSTREAMS]

    def _take(self, line: bytes) -> None:
        head, _, value = line.rpartition(b"::")
        where, _, name = head.rpartition(b"::")
        if name not in _TAKEN:
            return
        if where not in self._found:
            self._found[where] = _upstream(where)
        if (upstream := self._found[where]) is None:
            return
        if name == _HEALTH:
            upstream.healthy = False
        elif value.isdigit():
            upstream.numbers[name.decode()] = int(value)


def _upstream(where: bytes) -> Upstream | None:
    cluster, _, endpoint = where.decode("utf-8", "replace").partition("::")
    parts = cluster.split("|")
    if len(parts) != 4 or parts[0] not in _DIRECTIONS or not parts[1].isdecimal():
        return None
    return Upstream(parts[0], parts[3], int(parts[1]), endpoint)
