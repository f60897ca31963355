"""A mesh that changes all the time, under load, for as long as one likes: nothing fails and nothing grows."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.chaos.growth import Reading, judged_from
from tests.chaos.stage import Stage
from tests.lab.mesh import Mesh

#: Services that an operator's script changes with every step, and seconds between two steps.
SERVICES, PACE = 20, 0.5
#: Seconds between two looks at all processes.
LOOK = 5.0
#: Seconds for one command: a machine may be busy for long.
PATIENCE = 300.0

_ENTRY = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}, namespace: default}}
spec:
  hosts: [{name}.default.mesh.internal]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: {port}, name: redis, protocol: REDIS}}]
  endpoints: [{endpoints}]
"""


def soak(stage: Stage, minutes: float, tell: Callable[[str], None]) -> list[Reading]:
    """Changes for so long; afterwards the mesh is as it was. Users are the stage's; what they met is asked there.

    Readings begin at ``judged_from``.
    """
    start = time.monotonic()
    until, judged = start + minutes * 60, start + judged_from(minutes) * 60
    looked, told, step = 0.0, start, 0
    readings: list[Reading] = []
    while time.monotonic() < until:
        began = time.monotonic()
        _change(stage, step)
        step += 1
        if began - looked >= LOOK and began >= judged:
            readings += look(stage.mesh)
            looked = began
        if began - told >= 60:
            tell(f"{step * SERVICES} changes, {sum(tally.failed for tally in stage.met(0.0).values())} failures")
            told = began
        time.sleep(max(0.0, PACE - (time.monotonic() - began)))  # the pace is what is tested
    _undo(stage, step)
    return readings


def _change(stage: Stage, step: int) -> None:
    """All services get other endpoints; some a port of their own; every tenth step one goes, to come back later; a
    host adds and removes a service of its own."""
    hub, queue = stage.mesh.hub, stage.mesh.members["queue"]
    hub.meshagent("hub", "apply", "-f", "-", input="---".join(_entries(stage.mesh, step)), timeout=PATIENCE)
    if step % 10 == 5:
        hub.meshagent("hub", "delete", "serviceentry", _name(step // 10), timeout=PATIENCE)
    if step % 20 in (0, 10):
        wanted = step % 20 == 0
        options = ("--port", "6379", "--protocol", "tcp") if wanted else ()
        queue.meshagent("service", "add" if wanted else "remove", "passing", *options, timeout=PATIENCE)


def _undo(stage: Stage, step: int) -> None:
    if (step - 1) % 20 < 10:
        stage.mesh.members["queue"].meshagent("service", "remove", "passing", timeout=PATIENCE)


def _entries(mesh: Mesh, step: int) -> Iterator[str]:
    servers = [mesh.members[name] for name in ("cache", "db", "queue")]
    for number in range(SERVICES):
        some = [servers[(number + step + more) % 3] for more in range(1 + (number + step) % 3)]
        endpoints = ", ".join(f"{{address: {host.address}, serviceAccount: {host.name}}}" for host in some)
        port = 6379 if number % 4 else 7000 + step % 50
        yield _ENTRY.format(name=_name(number), port=port, endpoints=endpoints)


def _name(number: int) -> str:
    return f"soak{number % SERVICES}"


def look(mesh: Mesh) -> Iterator[Reading]:
    """Hub, and of every host agent, guard and proxy."""
    pids = {"hub": mesh.hub_program.pid}
    for name, host in mesh.members.items():
        pids[f"{name} agent"] = mesh.agents[name].pid
        pids[f"{name} guard"] = int((host.root / "run/meshagent/guard.lock").read_text())
        pids[f"{name} proxy"] = int(mesh.proxy_record(host)["data"]["handle"]["pid"])
    for process, pid in pids.items():
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        yield Reading(process, pages * os.sysconf("SC_PAGESIZE"), sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()))
