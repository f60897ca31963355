"""One look at a living proxy: does it serve, does it shed load, and what to make of its silence."""

from dataclasses import dataclass

from meshagent.agent.envoy import listening
from meshagent.agent.envoy.admin import Admin, AdminError
from meshagent.agent.envoy.epochs import STARTING_SECONDS, Listening, Verdict, judge_silence
from meshagent.runtime.clock import Clock

_STATS = (
    "listener_manager.workers_started",
    "cluster_manager.cds.update_success",
    "listener_manager.lds.update_success",
)
_SHEDDING = "overload.envoy.overload_actions.stop_accepting_connections.active"


@dataclass(frozen=True, slots=True)
class Look:
    """``verdict`` None: it answered. ``seconds``: how long it has been silent."""

    ready: bool
    shedding: bool = False
    verdict: Verdict | None = None
    seconds: float = 0.0


async def ask(admin: Admin) -> Look:
    """Ready = LIVE, workers started, clusters and listeners have come at least once. Raises ``AdminError``."""
    if await admin.state() != "LIVE":
        return Look(False)
    names = "|".join(name.replace(".", "\\.") for name in (*_STATS, _SHEDDING))
    found = await admin.stats(f"^({names})$")
    return Look(all(found.get(name, 0) > 0 for name in _STATS), found.get(_SHEDDING, 0) > 0)


class Looker:
    """Looks in a row at one process; ``served``: it was ready before."""

    def __init__(self, admin: Admin, clock: Clock, *, served: bool = False) -> None:
        self._admin, self._clock, self._served = admin, clock, served
        self._missed, self._since = 0, clock.monotonic()

    async def look(self) -> Look:
        """Bounded: the admin interface's patience plus the listener's."""
        try:
            found = await ask(self._admin)
        except AdminError:
            return await self._silent()
        self._missed, self._served = 0, self._served or found.ready
        return found

    async def _silent(self) -> Look:
        self._since = self._since if self._missed else self._clock.monotonic()
        self._missed += 1
        seconds = self._clock.monotonic() - self._since
        starting = not self._served and seconds < STARTING_SECONDS
        # While it starts, whoever answers on the port may be a stranger who holds it: nobody to be asked.
        heard = Listening.SILENT if starting else await listening.probe()
        verdict = judge_silence(self._missed, seconds, heard, served=self._served)
        return Look(self._served and verdict is Verdict.SERVES, verdict=verdict, seconds=seconds)
