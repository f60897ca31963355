"""A hub and an agent whose clocks are wrong: said plainly, and the rest goes on."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from meshagent.lab import Host, wait_until
from tests.lab.clocks import JumpingClock, wrong_clock
from tests.lab.mesh import Mesh, open_web_and_cache, wait_hub

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("mesh-clocks")]


@pytest.fixture(scope="module")
def mesh(envoy: Path) -> Iterator[Mesh]:
    with open_web_and_cache() as opened:
        yield opened


def condition(mesh: Mesh, host: Host, code: str) -> dict[str, str]:
    """The condition ``code`` as ``status`` shows it; empty when it doesn't hold."""
    return next((c for c in mesh.status(host)["conditions"] if c["code"] == code), {})


def restart_hub(mesh: Mesh, env: dict[str, str] | None = None) -> None:
    mesh.hub_program.stop()
    mesh.hub_program = mesh.hub.start_meshagent("hub", "run", log="hub", env=env)
    wait_hub(mesh)


@pytest.mark.parametrize(
    ("offset", "side"), [pytest.param("+1d", "behind", marks=pytest.mark.long), ("-1d", "ahead of")]
)
def test_a_hub_whose_clock_is_off_by_a_day_is_told_and_served_all_the_same(mesh: Mesh, offset: str, side: str) -> None:
    web = mesh.members["web"]
    with mesh.busy(web, "cache") as busy:
        restart_hub(mesh, wrong_clock(offset))
        try:
            told = wait_until(lambda: condition(mesh, web, "clock-skew"), 60, "the condition", 0.1)
            assert told["severity"] == "warning"
            assert f"{side} the hub's" in told["text"]
            assert "timedatectl" in told["text"]
            assert mesh.status(web)["control_plane"]["connected"]
            rotate(web, refused=offset == "+1d")
            assert mesh.redis(web, "cache") == "PONG"
            busy.goes_on()
        finally:
            restart_hub(mesh)
    mesh.settle()
    wait_until(lambda: mesh.conditions(web) == [], 60, "web as before")


@pytest.mark.parametrize(
    ("days", "side"), [(1, "ahead of"), pytest.param(-1, "behind", marks=pytest.mark.long)], ids=["on", "back"]
)
def test_a_host_whose_own_clock_jumps_by_a_day_says_so_and_cuts_nobody(mesh: Mesh, days: int, side: str) -> None:
    web = mesh.members["web"]
    with JumpingClock() as clock, mesh.busy(web, "cache") as busy:
        restart_agent(mesh, web, clock.environment)
        web.meshagent("certs", "rotate")  # what a hub of yesterday signed may be due at any moment
        web.meshagent("proxy", "restart")  # the busy connection now lives on the older epoch, for a day at most
        before = web.meshagent_json("certs")["serial"]
        clock.jump(days * 86_400)
        try:
            told = wait_until(lambda: condition(mesh, web, "clock-skew"), 60, "the condition", 0.1)
            assert f"{side} the hub's" in told["text"]
            busy.goes_on(100)
            assert mesh.redis(web, "cache") == "PONG"
            wait_until(lambda: mesh.conditions(web) == ["clock-skew"], 30, "nothing else to complain about", 0.1)
            wait_until(lambda: mesh.is_ready(web), 30, "web ready all the while", 0.1)
            assert mesh.status(web)["control_plane"]["config_age"] < 60, "not a day"
            assert web.meshagent_json("certs")["serial"] == before
            assert web.meshagent_json("proxy", "show")["parent"]["connections"] == 1
        finally:
            restart_agent(mesh, web)
        busy.goes_on()


def restart_agent(mesh: Mesh, host: Host, env: dict[str, str] | None = None) -> None:
    mesh.agents[host.name].stop()
    mesh.agents[host.name] = host.start_meshagent("run", log="agent", env=env)
    mesh.settle(60)


def rotate(host: Host, *, refused: bool) -> None:
    """A certificate that no peer would take yet is refused; what is in use stays."""
    before = host.meshagent_json("certs")["serial"]
    done = host.meshagent("certs", "rotate", check=False)
    assert done.returncode == (1 if refused else 0), done.stderr
    assert (host.meshagent_json("certs")["serial"] == before) is refused
    if refused:
        said, hint = done.stderr.splitlines()
        assert "becomes valid only in" in said
        assert "clock" in hint
