"""Step ``leave``: every host is given back, byte for byte."""

import contextlib

from meshagent.demo.held import finish
from meshagent.demo.narrator import StepResult, check
from meshagent.demo.world import World
from meshagent.lab import Host, wait_until
from meshagent.lab.snapshot import diff
from meshagent.model.errors import MeshagentError

#: A leftover that an untidy agent could leave; the comparison has to see it, or it proves nothing.
PLANTED = ("ip", "rule", "add", "fwmark", "0x1", "lookup", "133", "priority", "133")


def leave(world: World, result: StepResult) -> None:
    """Leave on every host; rules, routes, addresses, files, users and processes are as before."""
    for host in world.members:
        world.meshagent(host, "leave", "--drain", "5", "--purge", timeout=60)
        world.agents[host.name].wait(10)
    compared = 0
    for host in world.members:
        _settle(world, host)
        compared += sum(len(lines) for lines in host.snapshot().sections.values())
    world.run(world.web, *PLANTED)
    found = _left_over(world, world.web)
    check(len(found) == 1 and "fwmark" in found[0], f"the planted leftover was not found: {found}")
    world.run(world.web, *[word.replace("add", "del") for word in PLANTED])
    check(not world.connected(), f"the hub still sees hosts: {world.connected()}")
    alive = finish(world)
    result.detail = f"3 hosts as before in {compared} compared facts, a planted leftover was found; {alive}"


def _left_over(world: World, host: Host) -> list[str]:
    return diff(world.before[host.name], host.snapshot())


def _settle(world: World, host: Host) -> None:
    """The kernel frees a process's last traces a moment after it ended; everything else has to be gone at once."""
    with contextlib.suppress(MeshagentError):
        wait_until(lambda: not _left_over(world, host), timeout=3)
    found = _left_over(world, host)
    check(not found, f"{host.name} is not as it was: " + "; ".join(found[:12]))
