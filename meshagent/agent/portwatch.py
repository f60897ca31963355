"""Looks who stands on our ports while something of ours is missing there, says who, and takes a port when it is free.

Nobody looks while all is well: what we hold nobody else can take.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import structlog

from meshagent.agent import ports
from meshagent.agent.envoy.state import ProxyState
from meshagent.agent.health.tracker import Tracker
from meshagent.agent.ports import Taken
from meshagent.model.errors import MeshagentError
from meshagent.runtime.latest import Latest, any_newer

log = structlog.get_logger()

CONDITION = "port-taken"

#: Between two looks while something is missing.
LOOK_SECONDS = 1.0


class PortWatch:
    """``taken`` is set to the strangers on our ports, as of the newest look.

    ``unbound``: listeners that Envoy can't bind, with its reasons; ``bind_again`` is called after each look.
    """

    def __init__(
        self,
        proxy_uid: int,
        tracker: Tracker,
        taken: Latest[tuple[Taken, ...]],
        proxy: Latest[ProxyState],
        unbound: Latest[Mapping[str, str]],
        names_served: Latest[bool],
        bind_again: Callable[[], Awaitable[None]],
    ) -> None:
        self.taken = taken
        self._own = frozenset({proxy_uid})
        self._tracker = tracker
        self._proxy, self._unbound, self._names_served = proxy, unbound, names_served
        self._bind_again = bind_again

    async def look(self) -> None:
        """Once, now."""
        try:
            found = await asyncio.to_thread(ports.look, self._own)
        except MeshagentError as error:
            log.warning("who holds which port is not known", code=error.code, error=error.message)
            return
        if found != self.taken.value:
            log.warning("ports of the mesh", taken=[each.text for each in found])
        self.taken.set(found)
        self._tell(found)

    async def run(self) -> None:
        """Until cancelled."""
        followed = (self._proxy, self._unbound, self._names_served)
        missing = False
        while True:
            versions = [value.version for value in followed]
            missing, before = self._is_missing, missing
            if missing or before:  # once more when all is well again: what the look before told holds no longer
                await self.look()
            if missing:
                await self._bind_again()
            await any_newer(followed, versions, LOOK_SECONDS if self._is_missing else None)

    @property
    def _is_missing(self) -> bool:
        return bool(
            self.taken.value or self._unbound.value or not self._names_served.value or not self._proxy.value.ready
        )

    def _tell(self, found: tuple[Taken, ...]) -> None:
        """One condition for each program and port; where Envoy complains and nobody is seen, its own words."""
        texts = {f"{t.need.port}/{t.pid}": t.text for t in reversed(found)}
        if not found:
            texts = {f"listener/{name}": reason[-200:] for name, reason in self._unbound.value.items()}
        for key, text in texts.items():
            self._tracker.set(CONDITION, text, key)
        self._tracker.clear_others(CONDITION, texts.keys())
