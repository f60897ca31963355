"""kill -9 before every change that ``enroll`` and ``leave`` make: running it again finishes it, ``leave`` undoes it.

The points are those of a real run on this very host (``crashing``): `make test` takes some of them, the long suite all.
"""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshagent.lab import Host, Lab, wait_until
from meshagent.lab.snapshot import diff
from meshagent.lab.waiting import NotInTimeError

pytestmark = [pytest.mark.root, pytest.mark.timeout(1800), pytest.mark.xdist_group("enroll-killed")]

REPOSITORY = Path(__file__).resolve().parents[2]
SAMPLE = 5


class World:
    """A hub and a host that joins and leaves again and again."""

    def __init__(self, lab: Lab) -> None:
        self.hub, self.host = lab.host("hub"), lab.host("host")
        self.hub.start_meshagent("hub", "run")
        wait_until(lambda: self.hub.meshagent_json("hub", "hosts"), what="the hub")
        # --replace: a host killed between the hub's answer and its own disk is known there under a key it lost
        made = ["hub", "token", "create", "--service-account", "sa", "--uses", "1000", "--replace"]
        self.token = self.hub.meshagent_json(*made)["token"]
        self.before = self.host.snapshot()

    @property
    def enrol(self) -> list[str]:
        return ["enroll", f"{self.hub.address}:15012", self.token]

    def killed(self, number: int, *args: str) -> list[str]:
        """Run, killed before change ``number`` (0: not at all); the changes it came to."""
        log = self.host.private / "events"
        argv = [sys.executable, "-m", "tests.agent.crashing", str(number), str(log)]
        argv += ["--root", str(self.host.root), *args]
        done = self.host.run(argv, cwd=str(REPOSITORY), check=False, timeout=60)
        assert done.returncode in (0, -9, 137), done.stderr
        return log.read_text().splitlines()

    def given_back(self) -> None:
        """The kernel frees a process's last traces a moment after it ended."""
        with contextlib.suppress(NotInTimeError):
            wait_until(lambda: not diff(self.before, self.host.snapshot()), timeout=3)
        assert diff(self.before, self.host.snapshot()) == []


@pytest.fixture(scope="module")
def world(envoy: Path) -> Iterator[World]:
    with Lab(families=(4,)) as lab:
        yield World(lab)


EVERYWHERE = pytest.mark.parametrize(
    "everywhere", [pytest.param(False, id="somewhere"), pytest.param(True, id="everywhere", marks=pytest.mark.long)]
)


def points(events: list[str], everywhere: bool) -> list[int]:
    """All of them, else first, last and some between."""
    total = len(events)
    if everywhere:
        return list(range(1, total + 1))
    return sorted({1, total, *(1 + i * total // SAMPLE for i in range(SAMPLE))})


@EVERYWHERE
def test_enroll_killed_at_any_change_is_finished_by_running_it_again_or_undone_by_leave(
    world: World, everywhere: bool
) -> None:
    events = world.killed(0, *world.enrol)
    assert len(events) > 10, events
    run(world.host, "leave")
    world.given_back()
    for turn, number in enumerate(points(events, everywhere)):
        world.killed(number, *world.enrol)
        if turn % 2 == 0:
            run(world.host, *world.enrol)
            assert (world.host.root / "var/lib/meshagent/enrolment.json").exists(), events[number - 1]
        run(world.host, "leave", "--purge")
        world.given_back()


@EVERYWHERE
def test_leave_killed_at_any_change_is_finished_by_running_it_again(world: World, everywhere: bool) -> None:
    run(world.host, *world.enrol)
    events = world.killed(0, "leave", "--purge")
    assert len(events) > 10, events
    world.given_back()
    for number in points(events, everywhere):
        run(world.host, *world.enrol)
        world.killed(number, "leave", "--purge")
        run(world.host, "leave", "--purge")
        world.given_back()


def run(host: Host, *args: str) -> None:
    done = host.meshagent(*args, check=False)
    assert done.returncode == 0, done.stderr
