from meshagent.agent.services.hysteresis import Verdict, after
from meshagent.model.service import Check

CHECK = Check(healthy=2, unhealthy=3)


def row(*failures: str | None) -> list[bool]:
    verdict, seen = Verdict(), []
    for failure in failures:
        verdict = after(verdict, CHECK, failure)
        seen.append(verdict.health.healthy)
    return seen


def test_it_takes_a_row_of_good_checks_to_be_healthy_and_a_row_of_bad_ones_to_lose_it() -> None:
    assert row(None, None) == [False, True]
    assert row(None, None, "x", "x", "x") == [False, True, True, True, False]


def test_a_single_stray_check_changes_nothing() -> None:
    assert row(None, None, "x", "x", None, "x", "x") == [False, True, True, True, True, True, True]
    assert row("x", None, "x", None) == [False] * 4


def test_the_reason_is_the_newest_failure_and_gone_when_healthy() -> None:
    verdict = after(after(Verdict(), CHECK, "refused"), CHECK, "timed out")
    assert verdict.health.reason == "timed out" and verdict.known
    assert after(after(verdict, CHECK, None), CHECK, None).health.reason == ""
