"""Step ``hub-away``: the control plane is gone, its process dead; hosts go on, even restart; then it comes back."""

import socket
import time

from meshagent.demo.access import DB
from meshagent.demo.narrator import StepResult, check
from meshagent.demo.ready import is_ready
from meshagent.demo.wire import CACHE
from meshagent.demo.world import World


def hub_away(world: World, result: StepResult) -> None:
    """Existing and new connections, names, an agent and an Envoy that start without the hub, the return."""
    everyone = world.connected()
    with _session(world) as existing:
        _kill_hub(world)
        _pong(existing)
        _serves(world)
        world.kill_agent(world.web)
        began = time.monotonic()
        world.start_agent(world.web)
        world.wait("web serving without the hub", lambda: is_ready(world, world.web, connected=False))
        took = time.monotonic() - began
        _pong(existing)
    proxy = world.web.meshagent_json("status", check=False)["proxy"]["pid"]
    world.run(world.web, "kill", "-9", str(proxy))
    world.wait("an Envoy from last-known-good", lambda: _new_proxy(world, proxy))
    _serves(world)
    check(not _connected(world), "web says it is connected to a hub that is dead")
    began = time.monotonic()
    world.start_hub()
    world.wait("everyone reconnected", lambda: world.connected() == everyone, timeout=30)
    back = time.monotonic() - began
    world.wait("web ready", lambda: is_ready(world, world.web), timeout=30)
    result.detail = (
        f"without it names, old and new connections worked, agent and Envoy restarted on web from last-known-good "
        f"({took:.1f} s); {len(everyone)} hosts were back {back:.1f} s after the hub's start"
    )


def _kill_hub(world: World) -> None:
    program = world.control_plane
    assert program is not None
    world.tell.command("hub", f"kill -9 {program.pid}  # the hub")
    program.kill()
    check(not world.hub.processes(), f"something of the hub still runs: {world.hub.processes()}")
    for host in world.members:
        world.wait(f"{host.name} noticing", lambda h=host: not _connected(world, h))  # type: ignore[misc]


def _connected(world: World, host: object = None) -> bool:
    chosen = world.web if host is None else host
    return bool(chosen.meshagent_json("status", check=False)["control_plane"]["connected"])  # type: ignore[attr-defined]


def _serves(world: World) -> None:
    """Names resolve, new connections go through the mesh, the application sees its client."""
    check(world.run(world.web, "redis-cli", "-h", CACHE, "ping") == "PONG", "no new connection to Redis")
    query = ("mariadb", "--skip-ssl", "-h", DB, "-u", "app", "-papp", "-N", "-e", "select user()")
    check(world.run(world.web, *query) == f"app@{world.web.address}", "no new connection to MariaDB")


def _session(world: World) -> socket.socket:
    """A connection through the mesh, by name, that stays open."""
    virtual = world.run(world.web, "getent", "ahostsv4", CACHE).split()[0]
    opened = world.web.connect(virtual, 6379)
    _pong(opened)
    return opened


def _pong(opened: socket.socket) -> None:
    opened.sendall(b"PING\r\n")
    answer = opened.recv(64)
    check(answer == b"+PONG\r\n", f"the open connection answered {answer!r}")


def _new_proxy(world: World, old: int) -> bool:
    proxy = world.web.meshagent_json("status", check=False)["proxy"]
    return bool(proxy["ready"] and proxy["pid"] not in (old, None))
