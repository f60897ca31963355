"""Which conditions hold now, told by every part and shown in one order.

A report starts its delay; what is cleared within it was never seen. Times come from the clock handed in: delays by
the monotonic one, ``since`` by the wall.
"""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from meshagent.agent.health.conditions import CONDITIONS, ConditionSpec, spec_of
from meshagent.model.condition import Condition, Severity
from meshagent.runtime.clock import Clock
from meshagent.runtime.latest import Latest


@dataclass(frozen=True, slots=True)
class _Report:
    text: str
    since: datetime
    shows_at: float


class Tracker:
    """The ``ConditionSink`` of an agent. ``latest`` follows what shows; ``run`` lets delays end by themselves.

    Not thread-safe: report on the event loop.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._reports: dict[tuple[str, str], _Report] = {}
        self._changed = Latest(0)
        self.latest: Latest[tuple[Condition, ...]] = Latest(())

    def set(self, code: str, text: str, key: str = "") -> None:
        """``code`` holds for ``key``; said again it keeps its start and takes the new text."""
        spec = spec_of(code)
        old = self._reports.get((code, key))
        since = old.since if old else self._clock.now()
        shows_at = old.shows_at if old else self._clock.monotonic() + spec.delay
        report = _Report(text, since, shows_at)
        if report != old:
            self._reports[code, key] = report
            self._publish()

    def clear(self, code: str, key: str = "") -> None:
        """``code`` holds no longer for ``key``."""
        if self._reports.pop((code, key), None):
            self._publish()

    def clear_others(self, code: str, keys: Collection[str]) -> None:
        """Of ``code``, keep only ``keys``: for parts that report a whole set at a time."""
        for known_code, key in list(self._reports):
            if known_code == code and key not in keys:
                self.clear(code, key)

    def conditions(self) -> tuple[Condition, ...]:
        """What shows now: errors first, then in the order of the table, then by key."""
        now = self._clock.monotonic()
        shown = [item for item in self._reports.items() if item[1].shows_at <= now]
        codes = {code for (code, _), _ in shown}
        shown.sort(key=lambda item: (*_rank(item[0][0]), item[0][1]))
        return tuple(
            _condition(spec_of(code), report)
            for (code, _), report in shown
            if not codes.intersection(spec_of(code).depends_on)
        )

    async def run(self) -> None:
        """Publish conditions whose delay ends, until cancelled."""
        while True:
            version = self._changed.version
            try:
                async with asyncio.timeout(self._until_next()):
                    await self._changed.newer(version)
            except TimeoutError:
                self._publish()

    def _until_next(self) -> float | None:
        now = self._clock.monotonic()
        waiting = [report.shows_at - now for report in self._reports.values() if report.shows_at > now]
        return min(waiting, default=None)

    def _publish(self) -> None:
        self.latest.set(self.conditions())
        self._changed.set(self._changed.value + 1)


_ORDER = {code: place for place, code in enumerate(CONDITIONS)}


def _rank(code: str) -> tuple[int, int]:
    return 0 if spec_of(code).severity is Severity.ERROR else 1, _ORDER.get(code, len(_ORDER))


def _condition(spec: ConditionSpec, report: _Report) -> Condition:
    text = f"{report.text}: {spec.remedy}" if report.text else spec.remedy
    return Condition(spec.code, spec.severity, spec.title, text, report.since)
