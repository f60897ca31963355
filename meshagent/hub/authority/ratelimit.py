"""How often one source may try to enrol: a token bucket each, pure (``now`` is handed in).

A fleet behind one NAT enrols at one a second without end; a guesser has 20 tries, then one a second against 160 bits.
"""

from collections import OrderedDict
from ipaddress import IPv6Address, IPv6Network

from meshagent.model.address import IPAddress

BURST = 20.0
PER_SECOND = 1.0
#: 100 bytes each; the oldest source is forgotten first.
MAX_SOURCES = 10_000


class RateLimit:
    """``allow`` takes one try from the source's bucket; IPv6 sources count by /64, one customer (RFC 6177)."""

    def __init__(self, burst: float = BURST, per_second: float = PER_SECOND) -> None:
        self._burst = burst
        self._per_second = per_second
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def allow(self, source: IPAddress, now: float) -> bool:
        """``now`` in monotonic seconds."""
        key = source_key(source)
        level, at = self._buckets.pop(key, (self._burst, now))
        level = min(self._burst, level + (now - at) * self._per_second)
        allowed = level >= 1.0
        self._buckets[key] = (level - 1.0 if allowed else level, now)
        if len(self._buckets) > MAX_SOURCES:
            self._buckets.popitem(last=False)
        return allowed


def source_key(source: IPAddress) -> str:
    """The bucket of a source address."""
    if isinstance(source, IPv6Address):
        return str(IPv6Network((source, 64), strict=False))
    return str(source)
