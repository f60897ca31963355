"""How old what is known may be: over restarts, reboots and clocks that jump."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from meshagent.agent.heard import Heard, Moment, seconds_between
from meshagent.agent.upstream.state import UpstreamState
from meshagent.config.settings import AgentConfig, LastKnownConfig
from meshagent.runtime.latest import Latest
from tests.agent.capture.test_controller import Conditions

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
HERE = Moment(NOON, "this boot", 1000.0)


@pytest.mark.parametrize(
    ("later", "seconds"),
    [
        (Moment(NOON + timedelta(seconds=5), "this boot", 1005.0), 5),
        (Moment(NOON + timedelta(days=1), "this boot", 1005.0), 5),  # the clock was set on by a day
        (Moment(NOON - timedelta(days=1), "this boot", 1005.0), 5),  # and back
        (Moment(NOON + timedelta(hours=1), "the next boot", 20.0), 3600),
        (Moment(NOON - timedelta(hours=1), "the next boot", 20.0), 0),  # no battery: it booted in the past
    ],
)
def test_an_age_is_of_the_clock_that_nobody_sets_and_never_negative(later: Moment, seconds: float) -> None:
    assert seconds_between(HERE, later) == seconds


class Story:
    """A ``Heard`` whose clock the test holds."""

    def __init__(self, path: Path, limit: int) -> None:
        self.now, self.conditions = HERE, Conditions()
        self.upstream = Latest(UpstreamState())
        self.config = Latest(AgentConfig(last_known=LastKnownConfig(limit)))
        self.path = path

    def begin(self, saved_at: datetime | None = None) -> Heard:
        heard = Heard(self.path, "", self.upstream, self.config, self.conditions, lambda _boot: self.now)
        heard.start(saved_at)
        return heard

    def passes(self, heard: Heard, seconds: float) -> None:
        self.now = Moment(self.now.wall, self.now.boot_id, self.now.boot_seconds + seconds)
        heard.look()


def test_what_is_too_old_is_said_and_released_until_the_control_plane_answers(tmp_path: Path) -> None:
    story = Story(tmp_path / "heard.json", 3600)
    heard = story.begin()
    story.upstream.set(UpstreamState(connected=True))
    story.passes(heard, 90_000)
    assert (heard.age, heard.too_old.value, story.conditions.now) == (0.0, False, {})
    story.upstream.set(UpstreamState(connected=False))
    story.passes(heard, 3600)
    assert (heard.age, heard.too_old.value) == (3600.0, False)
    story.passes(heard, 1)
    assert heard.too_old.value
    assert "last heard 1 h ago, last_known.max_age is 1 h" in story.conditions.now["config-too-old"]
    story.config.set(AgentConfig())
    story.passes(heard, 1_000_000)
    assert not heard.too_old.value and story.conditions.now == {}, "no limit is the default"
    story.config.set(AgentConfig(last_known=LastKnownConfig(10)))
    story.upstream.set(UpstreamState(connected=True))
    story.passes(heard, 1)
    assert not heard.too_old.value


def test_a_restart_knows_when_it_heard_last_and_one_that_never_wrote_goes_by_what_it_saved(tmp_path: Path) -> None:
    story = Story(tmp_path / "heard.json", 60)
    assert story.begin(NOON - timedelta(hours=2)).age == 7200
    story.upstream.set(UpstreamState(connected=True))
    before = story.begin()
    before.look()
    before._write()
    story.upstream.set(UpstreamState(connected=False))
    story.passes(before, 50)
    assert story.begin(NOON - timedelta(hours=2)).age == 50
    (tmp_path / "heard.json").write_text("torn")
    assert story.begin().age == 0
