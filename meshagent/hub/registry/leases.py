"""When a silent host's endpoints go: leases, pure.

A lease lives as long as the announcement stream and a grace after it. When more than 30 % of the hosts (at least two)
are silent at once, it is rather the network or the hub that failed: then they are kept and marked stale, because old
endpoints with retries serve clients better than none. They go when their share has come down again.
"""

from collections.abc import Iterable
from dataclasses import dataclass

GRACE = 15.0
#: After a start of the hub its agents need time to find it again: backoff up to 30 s, and TLS for a thousand of them.
START_GRACE = 60.0
KEEP_SHARE = 0.30


@dataclass(frozen=True, slots=True)
class Lease:
    """``deadline`` in monotonic seconds, None while the stream is open."""

    host_id: int
    deadline: float | None


@dataclass(frozen=True, slots=True)
class Expiry:
    """Hosts whose endpoints go now, and hosts whose endpoints stay though their lease ran out."""

    drop: frozenset[int] = frozenset()
    stale: frozenset[int] = frozenset()


def expire(leases: Iterable[Lease], now: float) -> Expiry:
    """Judge all hosts that have endpoints, connected or not."""
    leases = tuple(leases)
    silent = [lease for lease in leases if lease.deadline is not None]
    overdue = frozenset(lease.host_id for lease in silent if lease.deadline is not None and lease.deadline <= now)
    if len(silent) >= 2 and len(silent) > KEEP_SHARE * len(leases):
        return Expiry(stale=overdue)
    return Expiry(drop=overdue)


def first_grace(grace: float) -> float:
    """How long known hosts have to come back after the hub became ready."""
    return max(grace, START_GRACE)
