"""What a row of checks means. Pure.

One lost packet takes nobody out of the mesh, one lucky answer brings nobody back.
"""

from dataclasses import dataclass, replace

from meshagent.model.service import Check, ServiceHealth

UNCHECKED = ServiceHealth(False, "not checked yet")


@dataclass(frozen=True, slots=True)
class Verdict:
    """The standing verdict, and how many checks in a row said the same. ``known``: a verdict was ever reached."""

    health: ServiceHealth = UNCHECKED
    passed: int = 0
    failed: int = 0
    known: bool = False


def after(verdict: Verdict, check: Check, failure: str | None) -> Verdict:
    """The verdict after one more check; ``failure`` says what was wrong, None = it passed.

    The first failure of a service never seen healthy counts at once: there is nothing to lose.
    """
    if failure is None:
        passed = verdict.passed + 1
        if passed >= check.healthy:
            return Verdict(ServiceHealth(True), passed, 0, True)
        return replace(verdict, passed=passed, failed=0)
    failed = verdict.failed + 1
    if failed >= check.unhealthy or not verdict.health.healthy:
        return Verdict(ServiceHealth(False, failure), 0, failed, True)
    return replace(verdict, passed=0, failed=failed)
