"""Ports that somebody else holds and a hub whose clock is wrong: said plainly, and the rest goes on."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshagent.lab import Host, recipes, wait_until
from tests.lab.clocks import wrong_clock
from tests.lab.mesh import Mesh, open_mesh, wait_hub

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("mesh-faults")]


@pytest.fixture(scope="module")
def mesh(envoy: Path) -> Iterator[Mesh]:
    with open_mesh((4,)) as opened:
        web, cache = opened.lab.host("web"), opened.lab.host("cache")
        recipes.redis(cache)
        opened.join_all((web, []), (cache, [("cache", 6379, "redis")]))
        yield opened


def condition(mesh: Mesh, host: Host, code: str) -> dict[str, str]:
    """The condition ``code`` as ``status`` shows it; empty when it doesn't hold."""
    return next((c for c in mesh.status(host)["conditions"] if c["code"] == code), {})


# --- a hub whose clock is off by a day


def restart_hub(mesh: Mesh, env: dict[str, str] | None = None) -> None:
    mesh.hub_program.stop()
    mesh.hub_program = mesh.hub.start_meshagent("hub", "run", log="hub", env=env)
    wait_hub(mesh)


@pytest.mark.parametrize(("offset", "side"), [("+1d", "behind"), ("-1d", "ahead of")])
def test_a_hub_whose_clock_is_off_by_a_day_is_told_and_served_all_the_same(mesh: Mesh, offset: str, side: str) -> None:
    web = mesh.members["web"]
    with mesh.busy(web, "cache") as busy:
        restart_hub(mesh, wrong_clock(offset))
        try:
            told = wait_until(lambda: condition(mesh, web, "clock-skew"), 15, "the condition", 0.1)
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
    wait_until(lambda: mesh.conditions(web) == [], 10, "web as before")


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


# --- ports


def test_a_hub_whose_port_is_taken_says_which_and_who_to_look_for(mesh: Mesh) -> None:
    host = mesh.lab.host("second-hub")
    with host.listen(15012):
        done = host.meshagent("hub", "run", check=False, timeout=15)
    said, hint = done.stderr.splitlines()[-2:]
    assert done.returncode == 1
    assert "15012: Address already in use" in said
    assert hint == "hint: see who has it: ss -ltnp sport = :15012"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("port", "where"), [(15001, "127.0.0.1"), (15008, "0.0.0.0")])
def test_a_port_of_the_proxy_that_is_taken_is_named_and_taken_when_free(mesh: Mesh, port: int, where: str) -> None:
    host = mesh.lab.host(f"p{port}")
    recipes.redis(host)
    with host.listen(port, where) as stranger:
        mesh.join(host, (f"s{port}", 6379, "redis"))
        told = wait_until(lambda: condition(mesh, host, "proxy-port-taken"), 8, "the condition", 0.1)
        assert f"cannot bind '{where}:{port}': Address already in use" in told["text"]
        assert f"ss -ltnp sport = :{15001}" in told["text"]
        assert host.meshagent("status", check=False).returncode == 4
        status = mesh.status(host)
        assert status["capture"]["active"] and status["proxy"]["ready"]
        address = wait_until(lambda: mesh.resolve(host, "cache.default.mesh.internal"), 5, "names")[0]
        assert is_served(mesh, host) is (port != 15001)
        assert not was_called(stranger), f"a stranger got the connection to {address}"
    wait_until(lambda: mesh.conditions(host) == [], 8, "the port taken back")
    wait_until(lambda: is_served(mesh, host), 5, "traffic out")
    assert mesh.redis(mesh.members["web"], f"s{port}") == "PONG"
    gone(mesh, host)


def test_a_port_that_was_lost_while_the_host_was_off_is_named_and_no_stranger_is_served(mesh: Mesh) -> None:
    host = mesh.lab.host("rebooted")
    mesh.join(host)
    wait_until(lambda: is_served(mesh, host), 8, "the host in the mesh")
    wait_until((host.root / "var/lib/meshagent/config.cache").exists, 5, "the last known state on disk")
    mesh.agents[host.name].stop()
    host.run(["kill", "-9", str(mesh.proxy_record(host)["data"]["handle"]["pid"])])
    with host.listen(15001, "127.0.0.1") as stranger:
        mesh.start(host)
        wait_until(lambda: condition(mesh, host, "proxy-port-taken"), 8, "the condition", 0.1)
        was_called(stranger)  # what came before the proxy had said that it can't listen
        assert not is_served(mesh, host)
        assert not was_called(stranger)
    wait_until(lambda: is_served(mesh, host), 8, "the port taken back")
    wait_until(lambda: mesh.conditions(host) == [], 8, "the condition gone")
    gone(mesh, host)


def is_served(mesh: Mesh, host: Host) -> bool:
    return mesh.redis(host, "cache", timeout=1) == "PONG"


def was_called(listener: socket.socket) -> bool:
    listener.setblocking(False)
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True


def gone(mesh: Mesh, host: Host) -> None:
    mesh.leave(host)
    del mesh.offers[host.name]


def test_without_its_resolver_port_a_host_captures_all_the_same_and_names_come_when_it_is_free(mesh: Mesh) -> None:
    host = mesh.lab.host("p15053")
    recipes.redis(host)
    with host.listen(15053, "127.0.0.1"):
        mesh.join(host, ("named", 6379, "redis"))
        told = wait_until(lambda: condition(mesh, host, "names-failed"), 8, "the condition", 0.1)
        assert "127.0.0.1 port 15053: Address already in use" in told["text"]
        assert "ss -lnp sport = :15053" in told["text"]
        wait_until(lambda: mesh.redis(mesh.members["web"], "named") == "PONG", 8, "its service in the mesh")
        assert mesh.resolve(host, "cache.lab.test"), "names outside the mesh resolve as ever"
    wait_until(lambda: mesh.conditions(host) == [], 8, "the port taken")
    wait_until(lambda: is_served(mesh, host), 5, "names of the mesh")
    gone(mesh, host)
