"""How much strangers may ask of the TLS front: a handshake costs about 1 ms of CPU, so it is rationed per source."""

from dataclasses import dataclass, field

_MAX_SOURCES = 10_000


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a front. Times in seconds; ``rate`` handshakes per second and source after ``burst`` at once.

    1,000 agents behind one NAT that come back after a hub restart, each with up to two connections, pass at once.
    """

    connections: int = 4_096
    pending: int = 512
    handshake_timeout: float = 10.0
    rate: float = 100.0
    burst: float = 2_500.0


@dataclass(slots=True)
class SourceRate:
    """A token bucket per source address; ``now`` is handed in, monotonic seconds."""

    rate: float
    burst: float
    _buckets: dict[str, tuple[float, float]] = field(default_factory=dict)  # source -> (tokens, at)

    def allow(self, source: str, now: float) -> bool:
        """Take one token of ``source``; False when it has none left."""
        tokens, at = self._buckets.get(source, (self.burst, now))
        tokens = min(self.burst, tokens + (now - at) * self.rate)
        allowed = tokens >= 1
        self._buckets[source] = (tokens - allowed, now)
        if len(self._buckets) > _MAX_SOURCES:
            self._forget(now)
        return allowed

    def _forget(self, now: float) -> None:
        """Drop full buckets, which say nothing; if a flood of sources keeps too many, drop the older half."""
        full = [s for s, (tokens, at) in self._buckets.items() if tokens + (now - at) * self.rate >= self.burst]
        if len(full) < _MAX_SOURCES // 2:
            full = sorted(self._buckets, key=lambda source: self._buckets[source][1])[: _MAX_SOURCES // 2]
        for source in full:
            del self._buckets[source]
