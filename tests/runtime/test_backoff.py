"""Waits grow, stay below the limit, differ between clients, and start over after success."""

import random

from hypothesis import given
from hypothesis import strategies as st

from meshagent.runtime.backoff import Backoff


@given(seed=st.integers(), failures=st.integers(0, 5000))
def test_every_wait_lies_between_half_of_its_step_and_the_step(seed: int, failures: int) -> None:
    backoff = Backoff(first=0.5, limit=30, rng=random.Random(seed), failures=failures)
    step = min(30.0, 0.5 * 2.0 ** min(failures, 64))
    assert step / 2 <= backoff.next() <= step
    assert backoff.failures == failures + 1


def test_success_starts_over() -> None:
    backoff = Backoff(first=1, limit=100, rng=random.Random(1))
    waits = [backoff.next() for _ in range(6)]
    assert waits[5] > 10 > 1 >= waits[0]
    backoff.reset()
    assert backoff.next() <= 1


def test_a_fleet_does_not_come_back_in_step() -> None:
    waits = {round(Backoff(first=10, rng=random.Random(host)).next(), 3) for host in range(100)}
    assert len(waits) > 90
