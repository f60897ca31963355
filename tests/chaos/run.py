"""Injects faults one after another and notes what came of each."""

import time
from collections.abc import Callable, Iterator, Sequence

from meshagent.model.errors import MeshagentError
from tests.chaos.faults import Fault
from tests.chaos.stage import Stage
from tests.chaos.table import Outcome, summed


def suffer(stage: Stage, faults: Sequence[Fault], tell: Callable[[str], None]) -> Iterator[Outcome]:
    """Every fault once, in the order of the dice; each outcome as soon as it is known."""
    order = list(faults)
    stage.dice.shuffle(order)
    for fault in order:
        outcome = _one(stage, fault)
        tell(f"{fault.name}: {'as promised' if outcome.ok else 'BROKEN PROMISE'}")
        yield outcome


def _one(stage: Stage, fault: Fault) -> Outcome:
    since = time.monotonic()
    left: tuple[str, ...] = ()
    host, injected = "", time.monotonic()
    try:
        host = fault.inject(stage)
        injected = time.monotonic()
        stage.settle()
    except MeshagentError as error:
        left = (error.message,)
    healed = time.monotonic() - injected
    done, failed, slowest, errors = summed(stage.met(since))
    trouble = _trouble(stage, since)
    return Outcome(fault.name, host, done, failed, trouble, slowest, healed, left, errors, fault.costs)


def _trouble(stage: Stage, since: float) -> float:
    """Seconds between the first and the last report with a failure, both included."""
    times = [
        report["at"]
        for user in stage.users.values()
        for report in user.reports()
        if report["at"] >= since and any(flow[1] for flow in report["flows"].values())
    ]
    return max(times) - min(times) + 0.2 if times else 0.0
