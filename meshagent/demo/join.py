"""Steps ``hub`` and ``enroll``: a control plane in its own host, three hosts join by one line each."""

import shlex
from functools import partial

from meshagent.demo.narrator import StepResult, check
from meshagent.demo.ready import is_ready
from meshagent.demo.wire import see_plain_text
from meshagent.demo.world import World
from meshagent.lab import Host

SERVICES = {"web": ("80", "http"), "cache": ("6379", "redis"), "db": ("3306", "mysql")}


def hub(world: World, result: StepResult) -> None:
    """The hub is up; before anything else, the Redis traffic is seen in plain text on the wire."""
    see_plain_text(world)
    world.start_hub()
    result.detail = f"control plane at {world.hub.address}:15012, CA made on first start"


def enroll(world: World, result: StepResult) -> None:
    """Each host joins with a token of its own and is ready; a used token is worthless."""
    for host in world.members:
        world.before[host.name] = host.snapshot()
    lines = {host.name: _join_line(world, host) for host in world.members}
    for host in world.members:
        _join(world, host, lines[host.name])
    for host in world.members:
        world.wait(f"{host.name} ready", partial(is_ready, world, host), timeout=30)
    again = world.outsider.meshagent(*shlex.split(lines["web"])[1:], check=False)
    check(again.returncode == 1, f"a used token enrolled another host: {again.stdout}{again.stderr}")
    world.tell.note(f"the same token again, on another host: {again.stderr.splitlines()[0]}")
    names = world.connected()
    check(names == ["cache", "db", "web"], f"connected hosts: {names}")
    result.detail = f"{', '.join(names)} joined with one line each and are ready"


def _join_line(world: World, host: Host) -> str:
    made = world.hub.meshagent_json("hub", "token", "create", "--service-account", host.name)
    return str(made["command"])


def _join(world: World, host: Host, line: str) -> None:
    world.meshagent(host, *shlex.split(line)[1:])
    port, protocol = SERVICES[host.name]
    world.meshagent(host, "service", "add", host.name, "--port", port, "--protocol", protocol)
    world.start_agent(host)
