"""A change that nobody confirms undoes itself, whatever the agent does meanwhile."""

import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from meshagent.lab import recipes, wait_until
from meshagent.lab.waiting import NotInTimeError
from tests.lab.mesh import Mesh, open_mesh

pytestmark = pytest.mark.root


@pytest.fixture
def mesh(envoy: Path) -> Iterator[Mesh]:
    with open_mesh((4,)) as opened:
        cache = opened.lab.host("cache")
        opened.lab.host("outsider")
        recipes.redis(cache)
        yield opened


def reaches(mesh: Mesh) -> bool:
    try:
        mesh.lab.hosts["outsider"].connect(mesh.lab.hosts["cache"].address, 6379, timeout=2).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("hung", [False, True], ids=["agent-runs", "agent-hangs"])
def test_an_unconfirmed_change_rolls_back_to_observe_and_is_told(mesh: Mesh, hung: bool) -> None:
    cache = mesh.lab.hosts["cache"]
    mesh.join_all((cache, [("cache", 6379, "redis")]))
    answer = cache.meshagent_json("posture", "strict", "--confirm", "2")
    assert answer["confirm_until"]
    wait_until(lambda: not reaches(mesh), 2)
    if hung:
        mesh.agents["cache"].send_signal(signal.SIGSTOP)
    wait_until(lambda: reaches(mesh), 4, "the roll-back")
    if hung:
        mesh.agents["cache"].send_signal(signal.SIGCONT)
    wait_until(lambda: "rolled-back" in mesh.conditions(cache), 5)
    status = mesh.status(cache)
    assert not status["capture"]["active"]
    assert status["capture"]["pending_confirm_until"] is None
    assert status["posture"] == "observe"
    assert cache.meshagent("status", check=False).returncode == 4
    # Deciding anew ends it.
    cache.meshagent("posture", "permissive", "--confirm", "0")
    wait_until(lambda: mesh.conditions(cache) == [] and mesh.status(cache)["capture"]["active"], 5)


def test_a_confirmed_change_stays(mesh: Mesh) -> None:
    cache = mesh.lab.hosts["cache"]
    mesh.join_all((cache, [("cache", 6379, "redis")]))
    until = datetime.fromisoformat(cache.meshagent_json("posture", "strict", "--confirm", "8")["confirm_until"])
    assert cache.meshagent_json("confirm") == {"confirmed": True}
    assert cache.meshagent_json("confirm") == {"confirmed": False}
    assert mesh.status(cache)["capture"]["pending_confirm_until"] is None
    rest = (until - datetime.now(UTC)).total_seconds()
    with pytest.raises(NotInTimeError):  # also a second after the moment at which it would have gone back
        wait_until(lambda: reaches(mesh), max(rest, 0) + 1, interval=0.2)
    assert mesh.status(cache)["posture"] == "strict"
    assert mesh.conditions(cache) == []


def test_the_first_capture_after_enrolling_waits_for_a_confirmation_too(mesh: Mesh) -> None:
    cache = mesh.lab.hosts["cache"]
    mesh.join(cache, ("cache", 6379, "redis"), options=("--confirm", "3"))
    wait_until(lambda: mesh.status(cache)["capture"]["pending_confirm_until"], 5)
    wait_until(lambda: "rolled-back" in mesh.conditions(cache), 8)
    assert not mesh.status(cache)["capture"]["active"]
