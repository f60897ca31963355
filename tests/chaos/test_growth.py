"""What counts as growing."""

import pytest

from tests.chaos.growth import DRAIN_MINUTES, Reading, growths, judged_from, render


@pytest.mark.parametrize(
    ("sizes", "ok"),
    [
        ([50.0] * 30, True),
        ([40.0] * 10 + [60.0] * 20, True),  # it was not warm yet
        ([50.0, 53.0, 51.0] * 10, True),
        ([50.0 + step * 0.5 for step in range(30)], False),
        ([50.0] * 20 + [57.0] * 10, False),
    ],
    ids=["flat", "warming", "breathing", "leak", "step"],
)
def test_what_is_bigger_in_the_last_third_than_in_the_second_grows(sizes: list[float], ok: bool) -> None:
    (memory,) = growths([Reading("agent", int(size * 1e6), 30) for size in sizes])
    (descriptors,) = growths([Reading("agent", 50_000_000, int(size)) for size in sizes])
    assert memory.ok is ok
    assert ("GROWS" in render([memory])) is not ok
    assert descriptors.ok is ok


def test_processes_are_judged_apart_and_not_by_two_looks() -> None:
    readings = [Reading(name, size, 1) for size in (1, 2, 3) for name in ("hub", "agent")]
    assert [(each.process, each.resident) for each in growths(readings)] == [("hub", (1, 2, 3)), ("agent", (1, 2, 3))]
    assert growths([Reading("hub", 1, 1)] * 2) == []


def test_a_long_soak_is_judged_once_the_proxies_are_full_of_what_they_drain() -> None:
    assert judged_from(20.0) > DRAIN_MINUTES
    assert (20.0 - judged_from(20.0)) * 60 > 3 * 5  # readings for three thirds
    assert judged_from(10.0) == judged_from(2.0) == 0.0
