"""Runs the health checks of all declared services, each at its own pace, and says how every service is.

One task per service, at most ``concurrency`` checks at a time; the first check runs at once, later ones at the
interval ± 10 %, so that a hundred services declared together don't stay in step.
"""

import asyncio
import random
from collections.abc import Callable, Mapping
from types import MappingProxyType

import structlog

from meshagent.agent.services.check import run_check
from meshagent.agent.services.hysteresis import UNCHECKED, Verdict, after
from meshagent.model.address import IPAddress
from meshagent.model.condition import ConditionSink
from meshagent.model.marks import AGENT_MARK
from meshagent.model.service import DeclaredService, ServiceHealth
from meshagent.runtime.latest import Latest

log = structlog.get_logger()

_JITTER = 0.1
#: A service that isn't well, or has just failed a check, is looked at more often than its interval says: its start
#: should be seen at once, and with three failures to be counted at 10 s callers would wait half a minute for its end.
_WAITING_SECONDS = 1.0


class Prober:
    """Checks services; ``health`` follows by service name."""

    def __init__(
        self,
        address_of: Callable[[DeclaredService], IPAddress],
        conditions: ConditionSink,
        *,
        mark: int | None = AGENT_MARK,
        concurrency: int = 16,
        rng: random.Random | None = None,
    ) -> None:
        self._address_of = address_of
        self._conditions = conditions
        self._mark = mark
        self._slots = asyncio.Semaphore(concurrency)
        self._rng = rng or random.Random()  # noqa: S311  # spreads load, guards nothing
        self._tasks: dict[str, tuple[DeclaredService, asyncio.Task[None]]] = {}
        self._verdicts: dict[str, Verdict] = {}
        self.health: Latest[Mapping[str, ServiceHealth]] = Latest(MappingProxyType({}))

    async def run(self, services: Latest[tuple[DeclaredService, ...]]) -> None:
        """Follow ``services`` until cancelled."""
        try:
            async for declared in services.watch():
                self.update(declared)
        finally:
            self.update(())

    def update(self, services: tuple[DeclaredService, ...]) -> None:
        """Check exactly these from now on. An unchanged check goes on; a changed one starts anew, verdict kept."""
        wanted = {service.name: service for service in services}
        for name, (service, task) in list(self._tasks.items()):
            if wanted.get(name) != service:
                task.cancel()
                del self._tasks[name]
            if name not in wanted:
                self._verdicts.pop(name, None)
                self._conditions.clear("service-unhealthy", name)
        for name, service in wanted.items():
            if name not in self._tasks:
                self._verdicts.setdefault(name, Verdict())
                self._tasks[name] = service, asyncio.create_task(self._watch(service), name=f"check {name}")
        self._publish()

    async def _watch(self, service: DeclaredService) -> None:
        while True:
            async with self._slots:
                address = self._address_of(service)
                failure = await run_check(service.check, address, service.target_port, mark=self._mark)
            self._note(service, failure)
            await asyncio.sleep(self._pause(service))

    def _pause(self, service: DeclaredService) -> float:
        interval = service.check.interval
        verdict = self._verdicts[service.name]
        if verdict.failed or not verdict.health.healthy:
            interval = min(interval, _WAITING_SECONDS)
        return interval * self._rng.uniform(1 - _JITTER, 1 + _JITTER)

    def _note(self, service: DeclaredService, failure: str | None) -> None:
        before = self._verdicts[service.name]
        verdict = after(before, service.check, failure)
        self._verdicts[service.name] = verdict
        if verdict.health.healthy != before.health.healthy or not before.known:
            log.info("service health", service=service.name, healthy=verdict.health.healthy, why=verdict.health.reason)
        if verdict.health.healthy:
            self._conditions.clear("service-unhealthy", service.name)
        else:
            self._conditions.set("service-unhealthy", f"{service.name}: {verdict.health.reason}", service.name)
        self._publish()

    def _publish(self) -> None:
        self.health.set(MappingProxyType({name: verdict.health for name, verdict in self._verdicts.items()}))


def health_of(health: Mapping[str, ServiceHealth], service: DeclaredService) -> ServiceHealth:
    """The verdict on a service, also on one that no check has reached yet."""
    return health.get(service.name, UNCHECKED)
