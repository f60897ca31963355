import asyncio
from datetime import UTC, datetime, timedelta

from meshagent.agent.health.conditions import CONDITIONS
from meshagent.agent.health.tracker import Tracker
from meshagent.runtime.clock import SystemClock


class Hand:
    """A clock moved by hand."""

    def __init__(self) -> None:
        self.elapsed = 0.0

    def monotonic(self) -> float:
        return 1000.0 + self.elapsed

    def now(self) -> datetime:
        return datetime(2030, 1, 1, tzinfo=UTC) + timedelta(seconds=self.elapsed)


def codes(tracker: Tracker) -> list[str]:
    return [condition.code for condition in tracker.conditions()]


def test_a_condition_shows_its_text_remedy_and_start() -> None:
    clock = Hand()
    tracker = Tracker(clock)
    tracker.set("config-rejected", "listener x: bad port")
    (shown,) = tracker.conditions()
    assert shown.text.startswith("listener x: bad port: ") and CONDITIONS["config-rejected"].remedy in shown.text
    assert shown.since == clock.now() and shown.title and tracker.latest.value == (shown,)


def test_what_is_mended_within_its_delay_is_never_seen() -> None:
    clock = Hand()
    tracker = Tracker(clock)
    tracker.set("hub-unreachable", "refused")
    assert codes(tracker) == []
    clock.elapsed = 14.9
    tracker.clear("hub-unreachable")
    tracker.set("hub-unreachable", "refused again")  # a new start, a new delay
    clock.elapsed = 16
    assert codes(tracker) == []
    clock.elapsed = 30
    assert codes(tracker) == ["hub-unreachable"]
    assert tracker.conditions()[0].since == datetime(2030, 1, 1, tzinfo=UTC) + timedelta(seconds=14.9)


def test_said_again_a_condition_keeps_its_start_and_takes_the_new_text() -> None:
    clock = Hand()
    tracker = Tracker(clock)
    tracker.set("cert-expired", "an hour ago")
    clock.elapsed = 60
    tracker.set("cert-expired", "two hours ago")
    (shown,) = tracker.conditions()
    assert shown.text.startswith("two hours") and (clock.now() - shown.since).seconds == 60


def test_a_consequence_is_not_shown_beside_its_cause() -> None:
    clock = Hand()
    tracker = Tracker(clock)
    tracker.set("cert-renewal-failing", "unavailable")
    tracker.set("hub-unreachable", "refused")
    clock.elapsed = 100
    assert codes(tracker) == ["hub-unreachable"]
    tracker.clear("hub-unreachable")
    assert codes(tracker) == ["cert-renewal-failing"]


def test_errors_come_first_and_instances_are_told_apart() -> None:
    clock = Hand()
    tracker = Tracker(clock)
    tracker.set("services-file-invalid", "line 3", "b.yaml")
    tracker.set("services-file-invalid", "line 1", "a.yaml")
    tracker.set("announcement-refused", "cache: taken", "cache")
    assert codes(tracker) == ["announcement-refused", "services-file-invalid", "services-file-invalid"]
    assert tracker.conditions()[1].text.startswith("line 1")
    tracker.clear_others("services-file-invalid", {"b.yaml"})
    assert [condition.text[:6] for condition in tracker.conditions()] == ["cache:", "line 3"]


def test_a_code_missing_in_the_table_shows_all_the_same() -> None:
    tracker = Tracker(Hand())
    tracker.set("no-such-code", "what happened")
    tracker.set("config-rejected", "x")
    assert codes(tracker) == ["config-rejected", "no-such-code"]


def test_a_delay_ends_by_itself_and_watchers_hear_of_it() -> None:
    async def story() -> None:
        tracker = Tracker(SystemClock())
        running = asyncio.create_task(tracker.run())
        await asyncio.sleep(0)
        tracker.set("guard-down", "socket closed")  # delay 1 s
        assert tracker.latest.value == ()
        async with asyncio.timeout(30):
            assert [condition.code for condition in await tracker.latest.newer(0)] == ["guard-down"]
        running.cancel()

    asyncio.run(story())
