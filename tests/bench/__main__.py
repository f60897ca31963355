"""``python -m tests.bench``: measures, keeps the raw numbers in the build cache, writes the table of the page."""

import argparse
import compileall
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from meshagent.lab import Lab
from tests.bench import capture, datapath, fleet, lifecycle, many, names, stage, storm, surroundings, table
from tests.bench.datapath import Effort
from tests.bench.samples import Sample

_REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = _REPOSITORY / "docs" / "performance.md"


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured: the whole takes 8 minutes and counts, the quick one shows that it runs."""

    path: Effort
    repeats: int
    joins: int
    names_seconds: float
    agents: int
    services: int
    changes: int
    many: int
    idle_seconds: float
    storm: int
    storms: int


FULL = Plan(Effort(2.0, 5), 15, 5, 5.0, 200, 500, 100, 1_000, 30.0, 1_000, 3)
QUICK = Plan(Effort(1.0, 1), 3, 1, 1.0, 30, 50, 10, 100, 2.0, 40, 1)


def measure_mesh(lab: Lab, plan: Plan, only: str) -> Iterator[Sample]:
    """What needs a mesh: the data path, joining, sizes, commands, names."""
    mesh = stage.build(lab)
    if only in ("", "path"):
        yield from datapath.measure(mesh, plan.path, tell)
    if only in ("", "host"):
        yield from (Sample("first-byte", lifecycle.first_byte(mesh, n), "", n) for n in range(plan.joins))
        yield from (Sample(name, value) for name, value in lifecycle.sizes(mesh))
        for number in range(min(plan.repeats, 5)):  # more in a minute would be a crash loop
            yield Sample("adopt", lifecycle.adopt(mesh), "", number)
            yield Sample("crash", lifecycle.crash(mesh), "", number)
        for number in range(plan.repeats):
            yield Sample("status", lifecycle.command(mesh.server, "status"), "", number)
            yield Sample("version", lifecycle.command(mesh.server, "--version"), "", number)
    if only in ("", "names"):
        yield from (Sample("names", names.measure(mesh, plan.names_seconds), "", n) for n in range(3))


def measure_rules(lab: Lab, plan: Plan, _only: str) -> Iterator[Sample]:
    """Kernel rules."""
    return capture.measure(lab, plan.repeats)


def measure_fleet(lab: Lab, plan: Plan, _only: str) -> Iterator[Sample]:
    """The hub with its agents."""
    return fleet.measure(lab, plan.agents, plan.services, plan.changes)


def measure_many(lab: Lab, plan: Plan, _only: str) -> Iterator[Sample]:
    """A host among many services."""
    os.environ["MESHAGENT_ENVOY"] = str(stage.envoy_binary())
    return many.measure(lab, plan.many, 2 * plan.repeats, plan.joins, plan.idle_seconds)


def measure_storm(_lab: Lab, plan: Plan, _only: str) -> Iterator[Sample]:
    """A hub that starts again with all of its agents waiting for it."""
    return storm.measure(plan.storm, plan.many, plan.storms)


#: --only NAME -> what measures it. A lab each: what one leaves running can't disturb the next.
PARTS: dict[str, Callable[[Lab, Plan, str], Iterator[Sample]]] = {
    "path": measure_mesh,
    "host": measure_mesh,
    "names": measure_mesh,
    "rules": measure_rules,
    "fleet": measure_fleet,
    "many": measure_many,
    "storm": measure_storm,
}


def main(arguments: list[str]) -> int:
    """Exit status 0 when everything was measured, whether or not goals were reached: the page tells that."""
    asked = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a lab ends with its block, whatever ends the block
    as_installed()
    plan = QUICK if asked.quick else FULL
    found = surroundings.look()
    began = time.monotonic()
    samples: list[Sample] = []
    everything = (measure_mesh, measure_rules, measure_fleet, measure_many, measure_storm)
    for measure in (PARTS[asked.only],) if asked.only else everything:
        with Lab(families=(4,)) as lab:
            samples += measure(lab, plan, asked.only)
    effort = (
        f"{plan.path.rounds} rounds of {plan.path.seconds:g} s for each way in turns; "
        f"{plan.agents} simulated agents, {plan.services} services, {plan.changes} changes; "
        f"{time.monotonic() - began:.0f} s in all."
    )
    kept = keep(samples, found, plan)
    text = table.render(samples, surroundings.told(found, effort))
    sys.stdout.write(text + "\n")
    if not (asked.quick or asked.only):
        PAGE.write_text(table.page(PAGE.read_text(), text))
        tell(f"written: {PAGE}")
    tell(f"raw numbers: {kept}")
    for line in table.missed(samples):
        tell(f"goal not reached: {line}")
    return 0


def as_installed() -> None:
    """Programs run from bytecode, as pip and packages leave them: 220 modules of ours take 0.2 s to compile, and what
    that leaves in the heap stays (a developer's environment may say PYTHONDONTWRITEBYTECODE)."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    compileall.compile_dir(_REPOSITORY / "meshagent", quiet=1)


def keep(samples: list[Sample], found: dict[str, str], plan: Plan) -> Path:
    """Every single number, with what it was measured on, as JSON in the build cache."""
    directory = Path(os.environ.get("MESHAGENT_CACHE", "/var/cache/meshagent-build")) / "bench"
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}.json"
    content = {"surroundings": found, "plan": asdict(plan), "samples": [asdict(sample) for sample in samples]}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False))
    return path


def tell(line: str) -> None:
    """Progress, on stderr."""
    sys.stderr.write(f"bench: {line}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute or two: does it run? The page stays as it is")
    parser.add_argument("--only", choices=sorted(PARTS), default="", help="measure one part; the page stays as it is")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
