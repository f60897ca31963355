"""Steps ``names`` and ``outsider``: a database by name, and a host that is not in the mesh."""

import time

from meshagent.demo.narrator import StepResult, check
from meshagent.demo.wire import CACHE
from meshagent.demo.world import World

DB = "db.default.mesh.internal"


def names(world: World, result: StepResult) -> None:
    """MariaDB by name: the server speaks first, and sees the client's own address."""
    query = ("mariadb", "--skip-ssl", "-h", DB, "-u", "app", "-papp", "-N", "-e", "select current_user(), user()")
    world.run(world.web, *query)
    began = time.monotonic()
    answer = world.run(world.web, *query)
    took = time.monotonic() - began
    check(f"app@{world.web.address}" in answer, f"MariaDB saw the client as {answer!r}, not from {world.web.address}")
    check(took < 1.0, f"a server that speaks first took {took:.2f} s")
    other = world.run(world.web, "getent", "hosts", f"{world.outsider.name}.lab.test")
    check(
        any(address in other for address in world.outsider.addresses), f"a name outside the mesh resolved to {other!r}"
    )
    result.detail = f"{DB} answered in {took * 1000:.0f} ms and saw {world.web.address}"


def outsider(world: World, result: StepResult) -> None:
    """Plain text is counted while permissive, refused once strict; the mesh goes on."""
    ping = ("redis-cli", "-h", world.cache.address, "ping")
    check(world.run(world.outsider, *ping) == "PONG", "a permissive service refused plain text")
    world.wait("the plain-text caller counted", lambda: _counted(world) > 0)
    world.tell.note(f"status on cache: {_counted(world)} plain-text connection(s) from {world.outsider.address}")
    world.meshagent(world.cache, "posture", "strict", "--confirm", "0")
    world.wait("plain text refused", lambda: not _reaches(world))
    began = time.monotonic()
    check(not _reaches(world), "a strict service took plain text")
    took = time.monotonic() - began
    check(took < 1.0, f"the refusal took {took:.2f} s: it should be at once")
    check(world.run(world.web, "redis-cli", "-h", CACHE, "ping") == "PONG", "strict refused a mesh peer")
    result.detail = f"{world.outsider.address} counted while permissive, refused in {took * 1000:.0f} ms when strict"


def _counted(world: World) -> int:
    callers = world.cache.meshagent_json("status", check=False)["plaintext_callers"]
    return sum(row["count"] for row in callers if row["address"] == world.outsider.address)


def _reaches(world: World) -> bool:
    try:
        world.outsider.connect(world.cache.address, 6379, timeout=2).close()
    except OSError:
        return False
    return True
