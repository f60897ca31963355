"""A change that nobody confirms undoes itself, whatever the agent does meanwhile."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from meshagent.guard.client import GuardClient
from meshagent.lab import Host, recipes, wait_until
from meshagent.lab.waiting import patience, stays_false
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


def rolled_back(host: Host) -> dict[str, Any]:
    """What the guard says of it; empty while there is nothing to say."""
    client = GuardClient(host.root / "run/meshagent/guard.sock")
    with contextlib.closing(client):
        return dict(client.state()["rolled_back"] or {})


def network(host: Host, state: str) -> None:
    """Of a host that then can't be asked from outside, nor ask anybody."""
    host.run(["ip", "link", "set", "eth0", state])


TROUBLE: dict[str, tuple[Callable[[Mesh, Host], object], Callable[[Mesh, Host], object]]] = {
    "agent-runs": (lambda mesh, host: None, lambda mesh, host: None),
    "agent-hangs": (
        lambda mesh, host: mesh.agents[host.name].send_signal(signal.SIGSTOP),
        lambda mesh, host: mesh.agents[host.name].send_signal(signal.SIGCONT),
    ),
    "agent-dead": (lambda mesh, host: mesh.agents[host.name].kill(), lambda mesh, host: mesh.start(host)),
    "network-lost": (lambda mesh, host: network(host, "down"), lambda mesh, host: network(host, "up")),
}


@pytest.mark.parametrize("trouble", TROUBLE)
def test_an_unconfirmed_change_rolls_back_to_observe_and_is_told(mesh: Mesh, trouble: str) -> None:
    begin, end = TROUBLE[trouble]
    cache = mesh.lab.hosts["cache"]
    mesh.join_all((cache, [("cache", 6379, "redis")]))
    with ThreadPoolExecutor() as beside:  # three seconds may be over before a busy machine comes to look
        refused = beside.submit(wait_until, lambda: not reaches(mesh), 10)
        until = datetime.fromisoformat(cache.meshagent_json("posture", "strict", "--confirm", "3")["confirm_until"])
        begin(mesh, cache)
        assert refused.result()
    undone = wait_until(lambda: rolled_back(cache), 10, "the roll-back")
    late = undone["at"] - until.timestamp()
    assert -0.1 < late < 1.5 * patience(), "neither sooner nor later, whatever happened meanwhile"
    end(mesh, cache)
    wait_until(lambda: reaches(mesh), 10)
    wait_until(lambda: "rolled-back" in mesh.conditions(cache), 10)
    status = wait_until(lambda: (found := mesh.status(cache))["posture"] == "observe" and found, 10)
    assert not status["capture"]["active"]
    assert status["capture"]["pending_confirm_until"] is None
    told = cache.meshagent("status", check=False)
    assert told.returncode == 4
    assert "a change was not confirmed and was undone" in told.stdout, "what happened"
    assert "set the posture again and confirm it" in told.stdout, "what to do"
    # Deciding anew ends it.
    cache.meshagent("posture", "permissive", "--confirm", "0")
    wait_until(lambda: mesh.conditions(cache) == [] and mesh.status(cache)["capture"]["active"], 10)


def test_a_confirmed_change_stays(mesh: Mesh) -> None:
    cache = mesh.lab.hosts["cache"]
    mesh.join_all((cache, [("cache", 6379, "redis")]))
    until = datetime.fromisoformat(cache.meshagent_json("posture", "strict", "--confirm", "8")["confirm_until"])
    assert cache.meshagent_json("confirm") == {"confirmed": True}
    assert cache.meshagent_json("confirm") == {"confirmed": False}
    assert mesh.status(cache)["capture"]["pending_confirm_until"] is None
    rest = (until - datetime.now(UTC)).total_seconds()
    # Also a second after the moment at which it would have gone back.
    assert stays_false(lambda: reaches(mesh), max(rest, 0) + 1, interval=0.2)
    assert mesh.status(cache)["posture"] == "strict"
    assert mesh.conditions(cache) == []


def test_the_first_capture_after_enrolling_waits_for_a_confirmation_too(mesh: Mesh) -> None:
    cache = mesh.lab.hosts["cache"]
    mesh.join(cache, ("cache", 6379, "redis"), options=("--confirm", "3"))
    wait_until(lambda: mesh.status(cache)["capture"]["pending_confirm_until"], 5)
    wait_until(lambda: "rolled-back" in mesh.conditions(cache), 8)
    assert not mesh.status(cache)["capture"]["active"]
