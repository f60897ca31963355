"""Names answered per second: dnsperf on one core asks the nameserver of resolv.conf, the kernel hands the questions to
the agent, which has the other core alone."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench import loads
from tests.bench.stage import SERVICES, Stage


def measure(stage: Stage, seconds: float) -> float:
    """Answers per second of the client's agent, running as ever."""
    queries = stage.client.private / "queries"
    lines = [f"{name}.default.mesh.internal {kind}\n" for name in SERVICES for kind in ("A", "AAAA")]
    queries.write_text("".join(lines))
    cores = sorted(os.sched_getaffinity(0))
    argv = loads.dnsperf(stage.lab.resolver.host.address, 53, str(queries), seconds)
    with _pinned(stage.agents["client"].pid, cores[0]):
        done = stage.client.run(["taskset", "--cpu-list", str(cores[-1]), *argv], timeout=30 + seconds)
    return loads.read_dnsperf(done.stdout)


@contextmanager
def _pinned(pid: int, core: int) -> Iterator[None]:
    """All threads of a process on one core."""
    threads = [int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir()]
    before = os.sched_getaffinity(pid)
    for thread in threads:
        os.sched_setaffinity(thread, {core})
    try:
        yield
    finally:
        for thread in threads:
            os.sched_setaffinity(thread, before)
