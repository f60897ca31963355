"""A user of the mesh who notices everything: requests and connections all the time, each checked, each failure told.

``User`` runs this file as a program on a lab host, so that neither the test's own work nor its interpreter slows the
requests down. Four kinds of flows: ``keep`` (HTTP requests on one connection), ``close`` (a connection per request),
``redis`` (a paced PING on one connection), ``bulk`` (a megabyte after the other on one connection). A server that says
"Connection: close" is polite; a connection that ends in any other way is a failure.
"""

import asyncio
import contextlib
import json
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meshagent.lab import Host

PATIENCE = 10.0  # for one answer; a person's browser waits longer
BULK = 1 << 20
REPORT = 0.2


@dataclass
class Tally:
    """What one flow went through since the last report."""

    done: int = 0
    failed: int = 0
    worst: float = 0.0
    errors: list[str] = field(default_factory=list)


# --- the program on the host


class Flow:
    """One flow; ``step`` does one exchange and raises when it failed."""

    def __init__(self, kind: str, address: str, port: int) -> None:
        self.kind, self._address, self._port = kind, address, port
        self.tally = Tally()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._steps: dict[str, tuple[Callable[[], Awaitable[None]], float]] = {
            "keep": (self._http, 0.005),
            "close": (self._http, 0.01),
            "redis": (self._ping, 0.01),
            "bulk": (self._get, 0.1),
        }

    async def run(self) -> None:
        step, pace = self._steps[self.kind]
        while True:
            began = time.monotonic()
            try:
                async with asyncio.timeout(PATIENCE):
                    await step()
                self.tally.done += 1
            except (OSError, ValueError, EOFError, TimeoutError) as error:
                self._drop()
                self.tally.failed += 1
                self.tally.errors.append(f"{type(error).__name__} {error} after {time.monotonic() - began:.2f} s"[:200])
                await asyncio.sleep(0.05)
            self.tally.worst = max(self.tally.worst, time.monotonic() - began)
            await asyncio.sleep(pace)

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._address, self._port, limit=2 * BULK)
        return self._streams

    def _drop(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def _http(self) -> None:
        reader, writer = await self._open()
        wish = "close" if self.kind == "close" else "keep-alive"
        writer.write(f"GET / HTTP/1.1\r\nHost: user\r\nConnection: {wish}\r\n\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        if not head.startswith("http/1.1 200 "):
            raise ValueError(head.splitlines()[0])
        length = next(line.partition(":")[2] for line in head.splitlines() if line.startswith("content-length:"))
        await reader.readexactly(int(length))
        if "connection: close" in head or self.kind == "close":
            self._drop()

    async def _ping(self) -> None:
        reader, writer = await self._open()
        writer.write(b"PING\r\n")
        if (answer := await reader.readline()) != b"+PONG\r\n":
            raise EOFError(f"answered {answer[:40]!r}")

    async def _get(self) -> None:
        reader, writer = await self._open()
        writer.write(b"GET bulk\r\n")
        if (head := await reader.readline()) != b"$%d\r\n" % BULK:
            raise EOFError(f"answered {head[:40]!r}")
        await reader.readexactly(BULK + 2)


async def main(wanted: list[list[Any]]) -> None:
    """Until SIGTERM; prints one line of JSON for every 0.2 s."""
    flows = [Flow(*each) for each in wanted]
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    tasks = [asyncio.create_task(flow.run()) for flow in flows]
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), REPORT)
        report = {}
        for flow in flows:
            tally, flow.tally = flow.tally, Tally()
            report[flow.kind] = [tally.done, tally.failed, round(tally.worst, 4), tally.errors[:5]]
        print(json.dumps({"at": time.monotonic(), "flows": report}), flush=True)  # noqa: T201 - read by User
    for task in tasks:
        task.cancel()


# --- in the test


class User:
    """Flows on ``host`` to ``targets``: kind -> (address, port). What they met is asked by time."""

    def __init__(self, host: "Host", targets: dict[str, tuple[str, int]], log: str = "user") -> None:
        self._host, self._log = host, log
        self._flows = [[kind, *target] for kind, target in targets.items()]

    def __enter__(self) -> "User":
        argv = [sys.executable, __file__, json.dumps(self._flows)]
        self._program = self._host.popen(argv, log=self._log)
        return self

    def __exit__(self, *_: object) -> None:
        if self._program.alive:
            self._program.stop()

    def reports(self) -> Iterator[dict[str, Any]]:
        """Everything said so far."""
        for line in self._program.text().splitlines():
            if line.startswith("{") and line.endswith("}"):
                yield json.loads(line)

    def met(self, since: float = 0.0) -> dict[str, Tally]:
        """Flow -> what it met since then (``time.monotonic``, one clock for the machine)."""
        found = {str(flow[0]): Tally() for flow in self._flows}
        for report in self.reports():
            if report["at"] < since:
                continue
            for kind, (done, failed, worst, errors) in report["flows"].items():
                tally = found[kind]
                tally.done, tally.failed = tally.done + done, tally.failed + failed
                tally.worst = max(tally.worst, worst)
                tally.errors += errors
        return found

    def goes_on(self, since: float, more: int = 3, timeout: float = 20.0) -> dict[str, Tally]:
        """Wait until each flow did ``more`` exchanges after ``since`` without a failure at its end; what was met."""
        from meshagent.lab import wait_until

        wait_until(lambda: self._flowing(since, more), timeout, "every flow going on", 0.1)
        return self.met(since)

    def _flowing(self, since: float, more: int) -> bool:
        last = [report for report in self.reports() if report["at"] >= since][-3:]
        if len(last) < 3:
            return False
        return all(
            sum(report["flows"][str(flow[0])][0] for report in last) >= min(more, 2)
            and not any(report["flows"][str(flow[0])][1] for report in last)
            for flow in self._flows
        )


def unharmed(met: dict[str, Tally]) -> None:
    """Raises unless every flow went on and not one exchange failed."""
    harm = {kind: (tally.failed, tally.errors[:3]) for kind, tally in met.items() if tally.failed}
    assert not harm, harm
    assert all(tally.done for tally in met.values()), {kind: tally.done for kind, tally in met.items()}


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
