"""When to renew: arithmetic."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshagent.agent.identity.schedule import (
    OVERDUE_SPREAD,
    RETRY_LONGEST,
    HubTime,
    renewal_due,
    retry_delay,
    seconds_until_renewal,
    time_left_text,
)

START = datetime(2026, 1, 1, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@pytest.mark.parametrize(
    ("life", "expected"),
    [
        (7 * DAY, DAY),  # the hub's: daily
        (30 * DAY, DAY),
        (36 * HOUR, 18 * HOUR),  # never later than half life
        (24 * HOUR, 12 * HOUR),  # istiod's: half life
        (HOUR, HOUR / 2),
    ],
)
def test_long_certificates_renew_daily_and_short_ones_at_half_life(life: timedelta, expected: timedelta) -> None:
    assert renewal_due(START, START + life, 0.0) == START + expected


@given(life=st.timedeltas(timedelta(minutes=1), 400 * DAY), spread=st.floats(-1, 1))
def test_renewal_always_leaves_at_least_two_fifths_of_the_life(life: timedelta, spread: float) -> None:
    due = renewal_due(START, START + life, spread)
    assert START < due <= START + life * 0.6


@given(late=st.timedeltas(timedelta(0), 400 * DAY), spread=st.floats(-1, 1))
def test_a_host_that_was_off_renews_within_seconds(late: timedelta, spread: float) -> None:
    now = START + 2 * DAY + late
    assert 0 <= seconds_until_renewal(START, START + 7 * DAY, now, spread) <= OVERDUE_SPREAD


@given(failures=st.integers(1, 10_000), left=st.timedeltas(-DAY, 7 * DAY), spread=st.floats(-1, 1))
def test_retries_back_off_but_a_short_rest_of_life_gets_ten_chances(
    failures: int, left: timedelta, spread: float
) -> None:
    delay = retry_delay(failures, left, spread)
    assert 0.5 <= delay <= RETRY_LONGEST
    if left > timedelta(seconds=10):
        assert delay <= max(1.0, left.total_seconds() / 10)


def test_the_hubs_time_goes_by_our_monotonic_clock() -> None:
    reading = HubTime(START, monotonic=100.0)
    assert reading.at(160.0) == START + timedelta(minutes=1)


@pytest.mark.parametrize(
    ("left", "text"),
    [
        (6 * DAY + 3 * HOUR, "6 d 3 h"),
        (2 * DAY, "2 d"),
        (11 * HOUR + timedelta(minutes=59), "11 h"),
        (2 * HOUR + timedelta(minutes=5), "2 h 5 min"),
        (timedelta(minutes=42), "42 min"),
        (timedelta(seconds=30), "less than a minute"),
        (timedelta(0), "expired"),
        (-DAY, "expired"),
    ],
)
def test_the_time_left_is_told_in_two_units_rounded_down(left: timedelta, text: str) -> None:
    assert time_left_text(left) == text
