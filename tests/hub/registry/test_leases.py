"""When a silent host's endpoints go, and when a partition keeps them."""

import pytest

from meshagent.hub.registry.leases import Expiry, Lease, expire, first_grace

NOW = 100.0


def leases(connected: int, waiting: int, overdue: int) -> list[Lease]:
    states = [None] * connected + [NOW + 1] * waiting + [NOW] * overdue
    return [Lease(number, deadline) for number, deadline in enumerate(states)]


@pytest.mark.parametrize(
    ("connected", "waiting", "overdue", "kept"),
    [
        (9, 0, 1, False),  # one of ten
        (2, 0, 1, False),  # one of three is one host, no partition
        (0, 0, 1, False),  # the only one
        (7, 0, 3, False),  # exactly 30 %
        (6, 0, 4, True),  # 40 % at once
        (6, 3, 1, True),  # the first of four that fell silent together
        (0, 0, 2, True),  # everybody
        (1, 0, 2, True),
    ],
)
def test_hosts_that_fall_silent_together_are_kept_as_stale(
    connected: int, waiting: int, overdue: int, kept: bool
) -> None:
    verdict = expire(leases(connected, waiting, overdue), NOW)
    ids = frozenset(range(connected + waiting, connected + waiting + overdue))
    assert verdict == (Expiry(stale=ids) if kept else Expiry(drop=ids))


def test_nothing_expires_before_its_deadline() -> None:
    assert expire(leases(3, 1, 0), NOW) == Expiry()


def test_after_a_start_known_hosts_have_at_least_a_minute() -> None:
    assert first_grace(15.0) == 60.0 and first_grace(120.0) == 120.0
