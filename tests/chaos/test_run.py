"""The short form of ``make chaos``: a fault of each kind in a mesh of six hosts under load."""

import os
import random
from pathlib import Path

import pytest

from tests.chaos.faults import FAULTS, SHORT
from tests.chaos.run import suffer
from tests.chaos.stage import open_stage
from tests.chaos.table import Outcome, render


@pytest.mark.root
@pytest.mark.timeout(300)
def test_a_fault_of_each_kind_costs_users_no_more_than_promised(envoy: Path) -> None:
    seed = os.environ.get("MESHAGENT_TEST_SEED") or str(random.SystemRandom().randrange(1 << 32))
    print(f"MESHAGENT_TEST_SEED={seed}")  # noqa: T201 - pytest shows it with a failure
    chosen = [fault for fault in FAULTS if fault.name in SHORT]
    assert len(chosen) == len(SHORT)
    with open_stage(seed) as stage:
        outcomes = list(suffer(stage, chosen, print))
    assert all(outcome.ok for outcome in outcomes), "\n" + render(outcomes)
    cut = next(outcome for outcome in outcomes if outcome.fault == "proxy killed at a server")
    assert cut.failed, "users notice when their connections are cut: else they would notice nothing"


@pytest.mark.parametrize(
    ("outcome", "ok"),
    [
        (Outcome("f", "h", 9, 0, 0.0, 0.1, 1.0), True),
        (Outcome("f", "h", 9, 1, 0.2, 0.1, 1.0), False),
        (Outcome("f", "h", 9, 1, 0.2, 0.1, 1.0, allowed=5.0), True),
        (Outcome("f", "h", 9, 1, 6.0, 0.1, 1.0, allowed=5.0), False),
        (Outcome("f", "h", 9, 0, 0.0, 0.1, 1.0, left=("not ready",)), False),
    ],
)
def test_a_promise_is_kept_when_nothing_failed_or_only_in_the_time_it_may(outcome: Outcome, ok: bool) -> None:
    assert outcome.ok is ok
    assert ("BROKEN" in render([outcome])) is not ok
