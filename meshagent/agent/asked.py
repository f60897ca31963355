"""Facts about this host that only some settings ask for: the groups of units they name, what this kernel can match.

Nothing is read, watched or tried while ``agent.yaml`` names no unit and nothing that comes in is to be redirected.
"""

import asyncio
import contextlib
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import structlog

from meshagent.agent.capture import text
from meshagent.agent.capture.values import HostFacts
from meshagent.config.settings import CaptureConfig, InboundScope
from meshagent.guard.client import GuardClient, GuardRefusedError
from meshagent.guard.state import Ruleset
from meshagent.machine import cgroups
from meshagent.model.errors import MeshagentError
from meshagent.model.marks import TABLE
from meshagent.model.policy import HostPolicy
from meshagent.runtime.latest import Latest, any_newer

log = structlog.get_logger()

#: Should an event be lost: as soon as the other facts nobody announces.
_RECHECK_SECONDS = 10.0

#: Where a rule stands, and the rule.
_TPROXY = ("filter hook prerouting priority 0", "meta l4proto tcp tproxy ip to 127.0.0.1:1 counter accept")
_CGROUP = ("filter hook output priority 0", 'socket cgroupv2 level {level} "{path}" counter')


class Asked:
    """Keeps ``cgroups``, ``cgroup_usable`` and ``tproxy_usable`` of ``facts`` right for ``config`` and ``policy``."""

    def __init__(
        self, config: Latest[CaptureConfig], policy: Latest[HostPolicy], facts: Latest[HostFacts], guard: GuardClient
    ) -> None:
        self._config, self._policy, self._facts, self._guard = config, policy, facts, guard
        self._can_do: set[str] = set()
        self._refused: set[str] = set()

    async def start(self) -> None:
        """Once, before the first rules are decided."""
        await self._look()

    async def run(self) -> None:
        """Follow until cancelled."""
        sources = (self._config, self._policy)
        while True:
            versions = [source.version for source in sources]
            if not units(self._config.value):
                await self._look()
                await any_newer(sources, versions)
                continue
            with contextlib.closing(cgroups.Watch()) as watch:
                while [source.version for source in sources] == versions:
                    await self._look()
                    await self._next(watch, any_newer(sources, versions))

    async def _next(self, watch: cgroups.Watch, newer: Coroutine[Any, Any, object]) -> None:
        waits: list[asyncio.Future[Any]] = [asyncio.ensure_future(watch.changed()), asyncio.ensure_future(newer)]
        try:
            await asyncio.wait(waits, timeout=_RECHECK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def _look(self) -> None:
        config = self._config.value
        found = await asyncio.to_thread(cgroups.find, units(config))
        changes: dict[str, object] = {"cgroups": found}
        if found:
            hook, rule = _CGROUP
            rule = rule.format(level=found[0].level, path=found[0].path)
            changes["cgroup_usable"] = await self._can("cgroups", hook, rule)
        if config.inbound is InboundScope.ALL or self._policy.value.redirect:
            changes["tproxy_usable"] = await self._can("tproxy", *_TPROXY)
        self._facts.set(replace(self._facts.value, **changes))  # type: ignore[arg-type]

    async def _can(self, what: str, hook: str, rule: str) -> bool:
        """Whether kernel and nft take such a rule. A guard that is away is no answer: taken as yes.

        A yes holds. A no is asked again at the next look: the unit may just have ended whose group the rule names, or
        the kernel have had no memory.
        """
        if what in self._can_do:
            return True
        probe = Ruleset(rules=f"table inet {TABLE} {{\n{text.chain('probe', hook, [rule])}}}\n")
        try:
            await asyncio.to_thread(self._guard.check, probe)
        except GuardRefusedError as error:
            if what not in self._refused:
                log.info("this kernel or nft can't match it", what=what, code=error.code, error=error.message)
            self._refused.add(what)
            return False
        except MeshagentError:
            return True
        self._can_do.add(what)
        return True


def units(config: CaptureConfig) -> frozenset[str]:
    """Every unit that the settings name."""
    return frozenset((*config.units, *config.exclude.units))
