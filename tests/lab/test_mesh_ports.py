"""Strangers on the mesh's ports: named with program and pid, never served, and the port is taken when they go."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meshagent.lab import Host, Program, recipes, wait_until
from tests.lab.mesh import Mesh, open_mesh

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("mesh-ports")]

#: The longest wait for what comes within seconds; a machine that runs other tests is slow.
PATIENCE = 60.0

LOOPBACK = {4: "127.0.0.1", 6: "::1"}
WILDCARD = {4: "0.0.0.0", 6: "::"}
SERVICE = "cache.default.mesh.internal"


@pytest.fixture(scope="module")
def mesh(envoy: Path) -> Iterator[Mesh]:
    with open_mesh() as opened:
        web, cache = opened.lab.host("web"), opened.lab.host("cache")
        recipes.redis(cache)
        opened.join_all((web, []), (cache, [("cache", 6379, "redis")]))
        yield opened


def stranger(host: Host, family: int, address: str, port: int, kind: str = "TCP") -> Program:
    """A program that listens there and says so for each connection it gets."""
    where = f"bind=[{address}],ipv6only=1" if family == 6 else f"bind={address}"
    how = f"{kind}{family}-{'LISTEN' if kind == 'TCP' else 'RECVFROM'}:{port},{where},fork"
    program = host.popen(["socat", "-d", "-d", f"{how}{',reuseaddr' if kind == 'TCP' else ''}", "SYSTEM:cat"])
    wait_until(lambda: holds(host, port, kind), PATIENCE, "the stranger on its port")
    return program


def holds(host: Host, port: int, kind: str = "TCP") -> bool:
    """Somebody listens on that port."""
    return f":{port} " in host.run(["ss", "-Hn", "-lt" if kind == "TCP" else "-lu"]).stdout


def was_called(program: Program) -> bool:
    return "accepting connection" in program.text()


def taken(mesh: Mesh, host: Host) -> list[str]:
    """Texts of the condition."""
    found: list[dict[str, Any]] = mesh.status(host)["conditions"]
    return [each["text"] for each in found if each["code"] == "port-taken"]


def addresses(mesh: Mesh) -> dict[int, str]:
    """The service's virtual addresses by family, from a host whose names work."""
    return {6 if ":" in a else 4: a for a in mesh.resolve(mesh.members["web"], SERVICE)}


def is_served(host: Host, address: str) -> bool:
    """A new connection through the mesh gets its answer."""
    try:
        with host.connect(address, 6379, timeout=3) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(100) == b"+PONG\r\n"
    except OSError:
        return False


def gone(mesh: Mesh, host: Host) -> None:
    mesh.leave(host)
    del mesh.offers[host.name]


def test_a_host_with_a_stranger_on_a_port_is_not_let_in_and_nothing_happened_to_it(mesh: Mesh) -> None:
    host = mesh.lab.host("refused")
    before = host.snapshot()
    mesh.before[host.name] = before
    for family, where, port, kind in (
        (4, LOOPBACK, 15001, "TCP"),
        (6, WILDCARD, 15008, "TCP"),
        (4, LOOPBACK, 15053, "UDP"),
    ):
        program = stranger(host, family, where[family], port, kind)
        done = host.meshagent(*mesh.token("refused"), check=False)
        assert done.returncode == 1
        said, hint = done.stderr.splitlines()[-2:]
        assert f"port {port} on {where[family]} is held by socat (pid {program.pid})" in said
        assert "nothing was changed" in hint
        warnings = host.meshagent_json("plan")["warnings"]
        assert any(f"port {port} on {where[family]} is held by socat (pid {program.pid})" in line for line in warnings)
        program.stop()
    wait_until(lambda: mesh.left_over(host) == [], PATIENCE, "nothing left of the strangers, and nothing of ours")


@pytest.mark.parametrize("family", [4, 6])
def test_strangers_on_all_ports_of_a_family_are_named_not_served_and_replaced_when_they_go(
    mesh: Mesh, family: int
) -> None:
    other, host = 10 - family, mesh.lab.host(f"crowded{family}")
    recipes.redis(host)
    host.meshagent(*mesh.token(host.name))
    host.meshagent("service", "add", f"own{family}", "--port", "6379", "--protocol", "redis")
    mesh.members[host.name], mesh.offers[host.name] = host, [(f"own{family}", 6379, "redis")]
    thieves = {
        15001: stranger(host, family, LOOPBACK[family], 15001),
        15008: stranger(host, family, WILDCARD[family], 15008),
        15053: stranger(host, family, LOOPBACK[family], 15053),
    }
    where = addresses(mesh)
    mesh.start(host)
    wait_until(lambda: len(taken(mesh, host)) == 3, PATIENCE, "three ports told", 0.2)
    for port, thief in thieves.items():
        assert any(f"port {port} " in text and f"held by socat (pid {thief.pid})" in text for text in taken(mesh, host))
    assert host.meshagent("status", check=False).returncode == 4
    wait_until(lambda: is_served(host, where[other]), PATIENCE, "the other family through the mesh")
    for _ in range(5):
        assert not is_served(host, where[family])
    (service,) = mesh.status(host)["services"]
    assert not service["healthy"]
    assert f"port 15008 on {WILDCARD[family]} is held by socat" in service["reason"]
    assert mesh.resolve(host, "cache.lab.test"), "names outside the mesh resolve as ever"
    assert not any(was_called(thief) for thief in thieves.values()), "a stranger got a connection of the mesh"

    for thief in thieves.values():
        thief.stop()
    wait_until(lambda: mesh.is_ready(host) and mesh.conditions(host) == [], PATIENCE, "all ports taken back", 0.2)
    wait_until(lambda: is_served(host, where[family]), PATIENCE, "the rules, which follow what is told by milliseconds")
    assert mesh.redis(host, "cache") == "PONG"
    wait_until(lambda: mesh.redis(mesh.members["web"], f"own{family}") == "PONG", PATIENCE, "its service in the mesh")
    gone(mesh, host)


def test_a_port_lost_while_agent_and_proxy_were_away_is_named_and_its_thief_is_not_served(mesh: Mesh) -> None:
    host = mesh.lab.host("robbed")
    mesh.join(host)
    where = addresses(mesh)
    wait_until(lambda: is_served(host, where[4]), PATIENCE, "the host in the mesh")
    mesh.agents[host.name].stop()
    host.run(["kill", "-9", str(mesh.proxy_record(host)["data"]["handle"]["pid"])])
    wait_until(lambda: not holds(host, 15001), PATIENCE, "the proxy gone")
    thief = stranger(host, 4, "127.0.0.1", 15001)
    for _ in range(5):
        assert not is_served(host, where[4]), "nobody of ours is there, and the rules refuse"
    assert not was_called(thief)
    mesh.start(host)
    wait_until(lambda: taken(mesh, host), PATIENCE, "the port told", 0.2)
    wait_until(lambda: is_served(host, where[6]), PATIENCE, "the other family")
    for _ in range(5):
        assert not is_served(host, where[4])
    assert not was_called(thief)

    thief.stop()
    wait_until(lambda: is_served(host, where[4]), PATIENCE, "the port taken back", 0.1)
    mesh.calm(host, PATIENCE)
    gone(mesh, host)


def test_a_restart_next_to_a_stranger_on_one_family_leaves_the_rules_of_the_other_alone(mesh: Mesh) -> None:
    """What is wrong with one port must not become a reason to touch what works."""
    host = mesh.lab.host("steady")
    host.meshagent(*mesh.token(host.name))
    mesh.members[host.name], mesh.offers[host.name] = host, []
    thief = stranger(host, 6, "::1", 15001)
    mesh.start(host)
    where = addresses(mesh)
    wait_until(
        lambda: is_served(host, where[4]) and taken(mesh, host), PATIENCE, "the host in the mesh, as far as it can"
    )
    rules = host.run(["nft", "-a", "list", "table", "inet", "meshagent"]).stdout.splitlines()[0]
    for _ in range(2):
        mesh.agents[host.name].kill()
        assert is_served(host, where[4])
        mesh.start(host)
        wait_until(lambda: taken(mesh, host) and mesh.status(host)["capture"]["in_sync"], PATIENCE, "the agent back")
        assert is_served(host, where[4])
        assert not is_served(host, where[6])
    assert host.run(["nft", "-a", "list", "table", "inet", "meshagent"]).stdout.splitlines()[0] == rules
    assert not was_called(thief)
    thief.stop()
    wait_until(lambda: is_served(host, where[6]), PATIENCE, "the port taken back", 0.1)
    gone(mesh, host)


def test_a_hub_whose_port_is_taken_says_by_whom(mesh: Mesh) -> None:
    host = mesh.lab.host("second-hub")
    thief = stranger(host, 4, "0.0.0.0", 15012)
    done = host.meshagent("hub", "run", check=False, timeout=15)
    said, hint = done.stderr.splitlines()[-2:]
    assert done.returncode == 1
    assert f"15012: Address already in use, by socat (pid {thief.pid})" in said
    assert hint == "hint: see who has it: ss -ltnp sport = :15012"
    assert "Traceback" not in done.stderr
