"""Steps ``hub`` and ``enroll``: a control plane in its own host, three hosts join by one line each."""

import shlex
from functools import partial

from meshagent.demo.narrator import StepResult, check
from meshagent.demo.wire import see_plain_text
from meshagent.demo.world import World
from meshagent.lab import Host

SERVICES = {"web": ("80", "http"), "cache": ("6379", "redis"), "db": ("3306", "mysql")}


def hub(world: World, result: StepResult) -> None:
    """The hub is up; before anything else, the Redis traffic is seen in plain text on the wire."""
    see_plain_text(world)
    world.tell.command(world.hub.name, "meshagent hub run &")
    program = world.hub.start_meshagent("hub", "run", log="hub")
    world.wait("the hub", lambda: program.alive and world.hub.meshagent_json("hub", "hosts"))
    result.detail = f"control plane at {world.hub.address}:15012, CA made on first start"


def enroll(world: World, result: StepResult) -> None:
    """Each host joins with a token of its own and is ready; a used token is worthless."""
    for host in world.members:
        world.before[host.name] = host.snapshot()
    lines = {host.name: _join_line(world, host) for host in world.members}
    for host in world.members:
        _join(world, host, lines[host.name])
    for host in world.members:
        world.wait(f"{host.name} ready", partial(is_ready, host), timeout=30)
    again = world.outsider.meshagent(*shlex.split(lines["web"])[1:], check=False)
    check(again.returncode == 1, f"a used token enrolled another host: {again.stdout}{again.stderr}")
    world.tell.note(f"the same token again, on another host: {again.stderr.splitlines()[0]}")
    names = [row["name"] for row in world.hub.meshagent_json("hub", "hosts")["hosts"] if row["connected"]]
    check(sorted(names) == ["cache", "db", "web"], f"connected hosts: {names}")
    result.detail = f"{', '.join(sorted(names))} joined with one line each and are ready"


def _join_line(world: World, host: Host) -> str:
    made = world.hub.meshagent_json("hub", "token", "create", "--service-account", host.name)
    return str(made["command"])


def _join(world: World, host: Host, line: str) -> None:
    world.meshagent(host, *shlex.split(line)[1:])
    port, protocol = SERVICES[host.name]
    world.meshagent(host, "service", "add", host.name, "--port", port, "--protocol", protocol)
    world.agents[host.name] = host.start_meshagent("run", log="agent")


def is_ready(host: Host) -> bool:
    """Connected, captured, Envoy ready, its own service announced and healthy, all services known."""
    status = host.meshagent_json("status", check=False)
    return bool(
        status
        and status["enrolled"]
        and status["control_plane"]["connected"]
        and status["capture"]["active"]
        and status["proxy"]["ready"]
        and all(service["healthy"] and service["host"] for service in status["services"])
        and len(host.meshagent_json("peers")["services"]) == len(SERVICES)
    )
