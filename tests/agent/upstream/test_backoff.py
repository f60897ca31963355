"""How long to wait."""

from meshagent.agent.upstream.backoff import LONGEST, ROUTINE_SPREAD, behind, wait


def test_waits_grow_to_a_limit_and_half_of_each_is_jitter() -> None:
    assert [wait(n, 1.0) for n in (1, 2, 3, 4, 5, 6, 60)] == [0.5, 1, 2, 4, 8, 8, 8]
    assert wait(5, 0.0) == LONGEST / 2
    assert (behind(0.0), behind(1.0)) == (LONGEST / 2, LONGEST)


def test_a_routine_close_is_followed_at_once_spread_over_a_second() -> None:
    assert wait(0, 0.0) == 0
    assert wait(0, 1.0) == ROUTINE_SPREAD
