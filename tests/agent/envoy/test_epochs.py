"""Adopt or start, and how soon again."""

import pytest

from meshagent.agent.envoy.epochs import (
    Found,
    Listening,
    Start,
    Verdict,
    deaths_in_a_row,
    judge_silence,
    look_wait,
    next_epoch,
    on_start,
    parse_version,
    require_tested,
    restart_wait,
)
from meshagent.model.errors import MeshagentError


@pytest.mark.parametrize(
    ("found", "decision"),
    [
        (Found(recorded=False, proven=False), Start.FRESH),
        (Found(recorded=True, proven=False), Start.FRESH),
        (Found(recorded=True, proven=True), Start.ADOPT),
        (Found(recorded=True, proven=True, draining=True), Start.FRESH),
    ],
)
def test_only_a_proven_process_that_is_not_on_its_way_out_is_adopted(found: Found, decision: Start) -> None:
    assert on_start(found) is decision


def test_the_first_restart_is_at_once_and_a_crash_loop_slows_down_to_half_a_minute() -> None:
    assert [restart_wait(n) for n in (1, 2, 3, 4, 5, 6, 7, 8, 100)] == [0, 0.2, 1, 5, 10, 20, 30, 30, 30]


def test_one_that_boots_is_looked_at_often_and_one_that_waits_seldom() -> None:
    assert look_wait(0.1, ready=False) < 0.01 < look_wait(60.0, ready=False) < look_wait(60.0, ready=True)


def test_a_proxy_that_lived_well_starts_the_count_anew() -> None:
    assert deaths_in_a_row(5, lived=1.0) == 6
    assert deaths_in_a_row(5, lived=60.0) == 1


def test_a_third_epoch_is_never_started_over_two_living_ones() -> None:
    assert next_epoch([]) == 0
    assert next_epoch([0]) == 1
    assert next_epoch([7]) == 8
    with pytest.raises(MeshagentError) as caught:
        next_epoch([0, 1])
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("\n/x/envoy  version: abc/1.40.0/Clean/RELEASE/BoringSSL\n", "1.40.0"),
        ("envoy  version: abc/1.41.0-dev/Modified/DEBUG/BoringSSL", "1.41.0"),
        ("envoy  version: abc/1.40/Clean/RELEASE", None),
        ("nginx version: nginx/1.22.1", None),
        ("envoy", None),
        ("", None),
    ],
)
def test_the_version_is_read_from_envoys_own_words(text: str, version: str | None) -> None:
    assert parse_version(text) == version


def test_an_untested_envoy_is_refused_with_the_range_unless_it_is_named() -> None:
    require_tested("1.40.0")
    require_tested("1.39.3")
    for other in ("1.20.0", "1.99.0", "2.0.0"):
        with pytest.raises(MeshagentError, match=r"1\.37 to 1\.40"):
            require_tested(other)
        require_tested(other, allowed=other)


@pytest.mark.parametrize(
    ("looks", "seconds", "listening", "served", "verdict"),
    [
        (9, 100.0, Listening.ANSWERS, True, Verdict.SERVES),  # whoever serves is never ended
        (1, 0.0, Listening.SILENT, True, Verdict.WAIT),
        (1, 60.0, Listening.SILENT, True, Verdict.WAIT),  # the agent slept for a minute
        (2, 2.0, Listening.SILENT, True, Verdict.HUNG),
        (2, 60.0, Listening.SILENT, True, Verdict.HUNG),
        (3, 9.9, Listening.SILENT, True, Verdict.HUNG),
        (4, 10.0, Listening.SILENT, True, Verdict.REPLACE),
        (4, 10.0, Listening.NONE, True, Verdict.REPLACE),
        (500, 10.0, Listening.NONE, False, Verdict.WAIT),  # it starts
        (500, 30.0, Listening.NONE, False, Verdict.REPLACE),
    ],
)
def test_only_a_proxy_that_is_silent_in_every_way_for_a_while_is_replaced(
    looks: int, seconds: float, listening: Listening, served: bool, verdict: Verdict
) -> None:
    assert judge_silence(looks, seconds, listening, served=served) is verdict
