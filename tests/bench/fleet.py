"""The hub with a fleet: how fast a change reaches everybody, and what an agent costs it. Agents are simulated
(agents.py), in a process and on a lab host of their own; the hub is the real one."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from meshagent.lab import Lab, Program, wait_until
from tests.bench.lifecycle import resident
from tests.bench.samples import Sample, percentile
from tests.bench.stage import start_hub

_REPOSITORY = Path(__file__).resolve().parents[2]


def measure(lab: Lab, agents: int, services: int, changes: int) -> Iterator[Sample]:
    """Samples ``hub-rss``, ``sync``, ``hub-per-agent``, ``change-p50``, ``change-p99``."""
    host, far = lab.host("fleet-hub"), lab.host("fleet")
    hub = start_hub(host)
    made = host.meshagent_json("hub", "token", "create", "--service-account", "fleet", "--uses", str(agents))
    argv = [sys.executable, "-m", "tests.bench.agents", f"{host.address}:15012", made["token"]]
    argv += [str(n) for n in (agents, services, changes)]
    fleet = far.popen(
        argv, log="fleet", stdin=subprocess.PIPE, env={"PYTHONPATH": str(_REPOSITORY)}, cwd=str(_REPOSITORY)
    )
    _told(fleet, "joined")  # nobody is connected; what the services cost will count as the agents' too
    pid = process_of(hub)
    alone = resident(pid)
    _go_on(fleet)
    _told(fleet, "announced")
    yield Sample("hub-rss", alone)
    _go_on(fleet)
    yield Sample("sync", _told(fleet, "synced"))
    yield Sample("hub-per-agent", (resident(pid) - alone) / agents)
    _go_on(fleet)
    taken = _told(fleet, "changes")
    yield Sample("change-p50", percentile(taken, 0.5))
    yield Sample("change-p99", percentile(taken, 0.99))
    fleet.stop()
    hub.stop()


def process_of(program: Program) -> int:
    """nsenter replaces itself by the program, so its pid is the program's."""
    return program.pid


def _go_on(fleet: Program) -> None:
    assert fleet.popen.stdin is not None
    fleet.popen.stdin.write(b"\n")
    fleet.popen.stdin.flush()


def _told(fleet: Program, step: str) -> Any:
    """The result of a step, once it is told; the process's own words when it ended instead."""

    def look() -> list[Any]:
        found = [json.loads(line) for line in fleet.text().splitlines() if line.startswith(f'{{"{step}"')]
        return found or ([] if fleet.alive else [{step: None}])

    value = wait_until(look, timeout=180, what=f"the fleet: {step}", interval=0.05)[0][step]
    if value is None:
        raise RuntimeError(f"the simulated agents ended: {fleet.tail(30)}")
    return value
