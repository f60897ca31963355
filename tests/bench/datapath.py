"""Loads over the direct path, the mesh and the raw shape, in turns: what disturbs the machine hits all alike."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.bench import loads
from tests.bench.goals import PATH_CASES, PathCase
from tests.bench.samples import Sample
from tests.bench.stage import Stage

CONNECTIONS = 32


@dataclass(frozen=True, slots=True)
class Effort:
    """How long and how often: seconds per turn, rounds."""

    seconds: float
    rounds: int


def measure(stage: Stage, effort: Effort, tell: Callable[[str], None]) -> Iterator[Sample]:
    """Every case over every shape of it, ``rounds`` times; each round begins with another shape."""
    for case in PATH_CASES:  # connections, caches and pools exist before anything counts
        for shape in case.shapes:
            _turn(stage, case, shape, 0.5)
    for number in range(effort.rounds):
        for case in PATH_CASES:
            start = number % len(case.shapes)
            for shape in case.shapes[start:] + case.shapes[:start]:
                value = _turn(stage, case, shape, effort.seconds)
                tell(f"round {number + 1} {case.name} {shape} {value:.0f} {case.unit}")
                yield Sample(case.name, value, shape, number)


def _turn(stage: Stage, case: PathCase, shape: str, seconds: float) -> float:
    what, _, how = case.name.partition("-")
    if what == "bulk":
        argv = loads.iperf(*stage.way("bulk", shape), seconds)
        return loads.read_iperf(_run(stage, argv, seconds))
    if what == "http":
        connections = 1 if how == "p50" else CONNECTIONS
        argv = loads.wrk(*stage.way("web", shape), connections, seconds, close=how == "close")
        rate, half = loads.read_wrk(_run(stage, argv, seconds))
        return half * 1e6 if how == "p50" else rate
    return _redis(stage, how, shape, seconds)


#: Requests per second on the direct path, roughly: redis-benchmark counts requests, not seconds.
_PACE = {"1": 60_000, "16": 400_000, "p50": 15_000}


def _redis(stage: Stage, how: str, shape: str, seconds: float) -> float:
    requests = int(_PACE[how] * seconds * (1.0 if shape == "direct" else 0.5))
    connections = 1 if how == "p50" else CONNECTIONS
    pipeline = 16 if how == "16" else 1
    argv = loads.redis_benchmark(*stage.way("kv", shape), connections, requests, pipeline)
    rate, half = loads.read_redis_benchmark(_run(stage, argv, seconds))
    return half * 1e6 if how == "p50" else rate


def _run(stage: Stage, argv: list[str], seconds: float) -> str:
    return stage.client.run(argv, timeout=60 + 10 * seconds).stdout
