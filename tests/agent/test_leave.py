"""Leaving in any condition: whatever died before, the host is as it was, and leave says what is left to do."""

import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from meshagent.lab import Host, recipes, wait_until
from meshagent.lab.snapshot import diff
from meshagent.lab.waiting import NotInTimeError, patience
from meshagent.machine import process
from tests.lab.mesh import Mesh, open_mesh, took

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("leave")]

#: What comes behind is run on a terminal: progress is for people.
TERMINAL = (sys.executable, "-c", "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)")
IN_USE = ("--accept", "mesh-in-use")
MESH_NAME = "cache.default.mesh.internal"


@pytest.fixture(scope="module")
def mesh(envoy: Path) -> Iterator[Mesh]:
    with open_mesh((4,)) as opened:
        web, cache = opened.lab.host("web"), opened.lab.host("cache")
        recipes.redis(cache)
        opened.before["web"] = web.snapshot()
        opened.join_all((cache, [("cache", 6379, "redis")]))
        yield opened


@pytest.fixture
def web(mesh: Mesh) -> Iterator[Host]:
    """A host in the mesh with a running agent; whatever the test did to it, out of the mesh afterwards."""
    host = mesh.lab.hosts["web"]
    mesh.join(host)
    mesh.settle()
    yield host
    hub_is_back(mesh, host)
    host.meshagent("leave", "--drain", "0", "--purge", check=False)
    del mesh.members["web"], mesh.offers["web"]


def hub_is_away(mesh: Mesh, host: Host) -> None:
    """Silent, as behind a firewall: it refuses nothing, it doesn't answer."""
    host.run(["ip", "route", "add", "blackhole", f"{mesh.hub.address}/32"])


def hub_is_back(mesh: Mesh, host: Host) -> None:
    host.run(["ip", "route", "del", "blackhole", f"{mesh.hub.address}/32"], check=False)


def kill(mesh: Mesh, host: Host, part: str) -> None:
    """kill -9."""
    if part == "agent":
        mesh.agents[host.name].kill()
        return
    pid = mesh.proxy_record(host)["data"]["handle"]["pid"] if part == "envoy" else guard_of(host)
    host.run(["kill", "-9", str(pid)])
    wait_until(lambda: process.start_time(pid) is None, 5, f"the end of {part}")


def guard_of(host: Host) -> int:
    """Pid of the guard of this host."""
    command = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in host.processes()}
    return next(pid for pid, words in command.items() if b"meshagent.guard" in words)


def given_back(mesh: Mesh, host: Host) -> None:
    """The kernel frees a process's last traces a moment after it ended."""
    with suppress(NotInTimeError):
        wait_until(lambda: not mesh.left_over(host), 3)
    assert mesh.left_over(host) == []


def known(mesh: Mesh) -> list[str]:
    return [str(row["name"]) for row in mesh.hub.meshagent_json("hub", "hosts")["hosts"]]


DEAD = [
    ("guard",),
    ("envoy",),
    ("agent",),
    ("envoy", "guard"),
    ("agent", "guard"),
    ("agent", "envoy"),
    ("agent", "envoy", "guard"),
]


@pytest.mark.parametrize("dead", DEAD, ids="+".join)
def test_whatever_was_killed_before_the_host_is_given_back_and_the_hub_is_told(
    mesh: Mesh, web: Host, dead: tuple[str, ...]
) -> None:
    for part in dead:
        kill(mesh, web, part)
    answer = web.meshagent_json("leave", "--drain", "1", "--purge")
    assert answer["was_enrolled"]
    assert answer["warnings"] == []
    given_back(mesh, web)
    assert known(mesh) == ["cache"]
    assert mesh.agents["web"].wait(5) == (-signal.SIGKILL if "agent" in dead else 0)


@pytest.mark.parametrize(
    "dead", [(), ("agent",), ("agent", "envoy", "guard")], ids=lambda dead: "+".join(dead) or "none"
)
def test_with_the_hub_away_leave_names_the_command_that_is_left_to_do_and_it_works(
    mesh: Mesh, web: Host, dead: tuple[str, ...]
) -> None:
    for part in dead:
        kill(mesh, web, part)
    hub_is_away(mesh, web)
    answer = web.meshagent_json("leave", "--drain", "1", "--purge")
    hub_is_back(mesh, web)
    assert answer["warnings"] == ["the hub could not be told; on the hub run: meshagent hub host revoke web"]
    given_back(mesh, web)
    assert "web" in known(mesh)
    mesh.hub.meshagent(*answer["warnings"][0].partition(": meshagent ")[2].split())
    assert known(mesh) == ["cache"]


def test_with_wait_leave_ends_when_the_last_connection_through_the_proxy_ended_by_itself(mesh: Mesh, web: Host) -> None:
    cache = mesh.members["cache"]
    with mesh.busy(web, "cache") as busy:
        leaving = web.popen([*TERMINAL, *web.meshagent_argv("leave", "--wait", "--purge", *IN_USE)], log="leaving")
        assert mesh.agents["web"].wait(10) == 0
        busy.goes_on(150)
        with web.connect(cache.address, 6379) as direct:  # new ones go past the proxy
            direct.sendall(b"PING\r\n")
            assert direct.recv(100) == b"+PONG\r\n"
        busy.goes_on(50)
        assert leaving.alive, leaving.text()
        assert busy.slowest < 0.5 * patience()
    assert took(lambda: leaving.wait(10)) < 5 * patience()
    assert leaving.wait() == 0
    assert "1 connection through the proxy in use; waiting until the last one ends" in leaving.text()
    assert "left the mesh in " in leaving.text()
    # it may have begun amid a probe of the proxy's port, which is a connection, too
    assert re.search(r"connections in use: [12], all ended by themselves", leaving.text()), leaving.text()
    assert "closed after the drain" not in leaving.text()
    given_back(mesh, web)
    assert known(mesh) == ["cache"]


def test_a_proxy_that_hangs_holds_nobody_up_beyond_the_drain_and_what_it_held_is_named(mesh: Mesh, web: Host) -> None:
    with web.connect(mesh.resolve(web, MESH_NAME)[0], 6379) as held:
        held.sendall(b"PING\r\n")
        assert held.recv(100) == b"+PONG\r\n"
        os.kill(mesh.proxy_record(web)["data"]["handle"]["pid"], signal.SIGSTOP)
        answer = web.meshagent_json("leave", "--drain", "2", "--purge", *IN_USE)
    assert f"1 connection of a program at {web.address}" in answer["closed"]
    assert answer["drain"]["limit"] == 2 and answer["drain"]["connections"]  # it may have stopped amid a probe, too
    assert 2 <= answer["drain"]["seconds"] <= answer["seconds"] < 60
    given_back(mesh, web)


CLAIM = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: moved, namespace: default}}
spec:
  hosts: [moved.default.mesh.internal]
  addresses: [{dead}, {alive}]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: 6379, name: redis, protocol: REDIS}}]
  endpoints: [{{address: {target}, serviceAccount: cache}}]
"""


@pytest.mark.parametrize("agent", ["agent-runs", "agent-killed"])
def test_while_a_program_uses_a_mesh_name_leaving_is_refused_until_it_is_accepted(
    mesh: Mesh, web: Host, agent: str
) -> None:
    address = mesh.resolve(web, MESH_NAME)[0]
    with web.connect(address, 6379) as open_connection:
        if agent == "agent-killed":
            kill(mesh, web, "agent")
        done = web.meshagent("leave", "--drain", "1", check=False)
        assert done.returncode == 5 and done.stdout == ""
        assert f"to {address} port 6379" in done.stderr and "--accept mesh-in-use" in done.stderr
        assert (MESH_NAME in done.stderr) == (agent == "agent-runs")
        open_connection.sendall(b"PING\r\n")
        assert open_connection.recv(100) == b"+PONG\r\n", "nothing was given up"
        assert "web" in known(mesh)
        answer = web.meshagent_json("leave", "--drain", "0", "--purge", *IN_USE)
        assert any(address in line for line in answer["warnings"])
        assert [each["name"] for each in answer["asked"]] == ([MESH_NAME] if agent == "agent-runs" else [])
    given_back(mesh, web)


def test_a_dead_literal_in_use_is_a_reason_to_stay_and_one_whose_machine_lives_is_not(mesh: Mesh, web: Host) -> None:
    cache, dead = mesh.members["cache"], mesh.hub.address.rpartition(".")[0] + ".250"
    entry = CLAIM.format(dead=dead, alive=cache.address, target=cache.address)
    mesh.hub.meshagent("hub", "apply", "-f", "-", input=entry)

    def captured() -> bool:
        return dead in web.run(["nft", "list", "table", "inet", "meshagent"]).stdout

    wait_until(captured, 10)
    try:
        with web.connect(cache.address, 6379), web.connect(dead, 6379):
            done = web.meshagent("leave", check=False)
        assert done.returncode == 5
        assert f"to {dead} port 6379, whose machine is gone" in done.stderr
        assert cache.address not in done.stderr
        with web.connect(cache.address, 6379):
            answer = web.meshagent_json("leave", "--drain", "0", "--purge")
        assert answer["was_enrolled"] and answer["warnings"] == []
    finally:
        mesh.hub.meshagent("hub", "delete", "serviceentry", "moved", "--namespace", "default")
    given_back(mesh, web)


def test_leaving_twice_in_a_row_finds_nothing_to_do_the_second_time(mesh: Mesh, web: Host) -> None:
    assert web.meshagent_json("leave", "--drain", "1", "--purge")["was_enrolled"]
    again = web.meshagent_json("leave", "--drain", "1", "--purge")
    assert again.pop("seconds") < 10
    assert again == {"was_enrolled": False, "removed": [], "closed": [], "drain": None, "warnings": [], "asked": []}
    given_back(mesh, web)


def test_a_host_that_never_enrolled_is_left_alone(mesh: Mesh) -> None:
    stranger = mesh.lab.host("stranger")
    before = stranger.snapshot()
    for options in ((), ("--wait",), ("--purge",)):
        done = stranger.meshagent("leave", *options)
        assert (done.returncode, done.stdout) == (0, "this host is not in a mesh; nothing to do\n")
    assert diff(before, stranger.snapshot()) == []


def test_without_libnftables_nothing_is_given_up_until_it_is_back(mesh: Mesh, web: Host) -> None:
    for part in ("agent", "guard"):
        kill(mesh, web, part)
    before = web.snapshot()
    libraries = web.run(["sh", "-c", "ls /usr/lib/*/libnftables.so.1"]).stdout.split()
    hide = "; ".join(f"mount --bind /dev/null {library}" for library in libraries)
    argv = " ".join(web.meshagent_argv("leave", "--drain", "1", "--purge"))
    done = web.run(["unshare", "--mount", "sh", "-c", f"{hide}; exec {argv}"], check=False)
    said, hint = done.stderr.splitlines()
    assert (done.returncode, "libnftables.so.1 is not installed" in said, hint[:6]) == (1, True, "hint: "), done.stderr
    changed = diff(before, web.snapshot())  # an Envoy that has lost its agent says so in its log, whenever it likes
    assert [line for line in changed if "proxy.log" not in line] == []
    assert "web" in known(mesh)
    mesh.start(web)  # nothing was lost: the host is as good a member as before
    mesh.settle()
    wait_until(lambda: mesh.redis(web, "cache") == "PONG", 5, "redis through the mesh")
    assert web.meshagent_json("leave", "--drain", "1", "--purge")["warnings"] == []
    given_back(mesh, web)
