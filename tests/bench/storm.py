"""A hub is killed and started again: how soon all of its agents have everything again, and what each costs it.

The hub is real and alone in its process; the agents (returning.py) are real where they meet it and share this machine's
cores with it, in as many processes as there are cores. They were enrolled beforehand, in the hub's database.
"""

import asyncio
import contextlib
import json
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from meshagent.lab import wait_until
from tests.bench.samples import Sample
from tests.hub.fleets import Fleet, enrolled
from tests.ports import free_port

#: Processes of agents, and seconds that any step may take.
_PROCESSES, _PATIENCE = 2, 300.0


@dataclass(frozen=True, slots=True)
class _Part:
    """A process with some of the agents."""

    program: "subprocess.Popen[bytes]"
    output: Path

    def told(self, step: str) -> list[tuple[float, float]]:
        """Monotonic clock and own processor time at each end of ``step`` so far."""
        if self.program.poll() is not None:
            raise RuntimeError(f"the simulated agents ended: {self.output.with_suffix('.err').read_text()[-2000:]}")
        lines = self.output.read_text().splitlines()
        return [tuple(json.loads(line)[step]) for line in lines if line.startswith(f'{{"{step}"') and line[-1] == "}"]


def measure(agents: int, services: int, rounds: int) -> Iterator[Sample]:
    """Samples ``storm`` (s), ``storm-hub`` and ``storm-agents`` (ms of processor time for each agent)."""
    with tempfile.TemporaryDirectory(prefix="meshagent-storm-") as directory, contextlib.ExitStack() as stack:
        fleet = asyncio.run(enrolled(Path(directory), agents, free_port()))
        with fleet.running():
            parts = stack.enter_context(_coming(fleet, services))
            _all(parts, "back", 1)
        for number in range(1, rounds + 1):
            yield from _restart(fleet, parts, number)


def _restart(fleet: Fleet, parts: Sequence[_Part], number: int) -> Iterator[Sample]:
    """The hub is gone; the time begins with the ``exec`` of the next one."""
    lost = _all(parts, "lost", number)
    began = time.monotonic()
    with fleet.running() as hub:
        back = _all(parts, "back", number + 1)
        computed = fleet.processor_time(hub)
    count = len(fleet.identities)
    theirs = sum(now[1] - then[1] for now, then in zip(back, lost, strict=True))
    yield Sample("storm", max(when for when, _ in back) - began, "", number)
    yield Sample("storm-hub", computed * 1e3 / count, "", number)
    yield Sample("storm-agents", theirs * 1e3 / count, "", number)


def _all(parts: Sequence[_Part], step: str, times: int) -> list[tuple[float, float]]:
    """What each process told when it had done ``step`` so many times."""
    wait_until(lambda: all(len(p.told(step)) >= times for p in parts), _PATIENCE, f"all agents: {step}", 0.1)
    return [part.told(step)[times - 1] for part in parts]


@contextlib.contextmanager
def _coming(fleet: Fleet, services: int) -> Iterator[list[_Part]]:
    """The processes of the agents, ended with the block."""
    told = fleet.root / "fleet"
    told.write_bytes(pickle.dumps(fleet))
    edges = [len(fleet.identities) * number // _PROCESSES for number in range(_PROCESSES + 1)]
    with contextlib.ExitStack() as stack:
        yield [_start(stack, told, [services, first, last]) for first, last in pairwise(edges)]


def _start(stack: contextlib.ExitStack, fleet: Path, numbers: list[int]) -> _Part:
    output = fleet.with_name(f"agents-{numbers[1]}.out")
    argv = [sys.executable, "-m", "tests.bench.returning", str(fleet), *map(str, numbers)]
    with output.open("wb") as told, output.with_suffix(".err").open("wb") as errors:
        program = subprocess.Popen(argv, stdout=told, stderr=errors, cwd=Path(__file__).resolve().parents[2])
    stack.callback(program.wait)
    stack.callback(program.kill)
    return _Part(program, output)
