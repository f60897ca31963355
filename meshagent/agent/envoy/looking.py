"""One look at a living proxy: does it serve, does it shed load, and what to make of its silence."""

from dataclasses import dataclass

from meshagent.agent.envoy import listening
from meshagent.agent.envoy.admin import Admin, AdminError
from meshagent.agent.envoy.epochs import STARTING_SECONDS, Listening, Verdict, judge_silence
from meshagent.runtime.clock import Clock

#: Gauges, each above zero once workers run, and clusters and listeners were taken: a version is a hash, set by the
#: first update that Envoy doesn't refuse.
_STATS = (
    "listener_manager.workers_started",
    "cluster_manager.cds.version",
    "listener_manager.lds.version",
)
_SHEDDING = "overload.envoy.overload_actions.stop_accepting_connections.active"

#: Once it is ready its numbers are asked for so often. For the few that match, Envoy looks through what each service
#: may count, in the thread that takes configuration: with 1,000 services 4 to 6 ms (1.40.0).
COUNT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Look:
    """``verdict`` None: it answered. ``seconds``: how long it has been silent."""

    ready: bool
    shedding: bool = False
    verdict: Verdict | None = None
    seconds: float = 0.0


class Looker:
    """Looks in a row at one process; ``served``: it was ready before."""

    def __init__(self, admin: Admin, clock: Clock, *, served: bool = False) -> None:
        self._admin, self._clock, self._served = admin, clock, served
        self._missed, self._since = 0, clock.monotonic()
        self._counted, self._count_at = Look(False), self._since

    async def look(self) -> Look:
        """Bounded: the admin interface's patience plus the listener's."""
        try:
            found = await self._ask()
        except AdminError:
            return await self._silent()
        self._missed, self._served = 0, self._served or found.ready
        return found

    async def _ask(self) -> Look:
        """Ready = LIVE, workers started, clusters and listeners have come at least once. Raises ``AdminError``."""
        if await self._admin.state() != "LIVE":
            return Look(False)
        now = self._clock.monotonic()
        if not self._counted.ready or now >= self._count_at:
            names = "|".join(name.replace(".", "\\.") for name in (*_STATS, _SHEDDING))
            found = await self._admin.stats(f"^({names})$", kind="Gauges")
            self._count_at = now + COUNT_SECONDS
            self._counted = Look(all(found.get(name, 0) > 0 for name in _STATS), found.get(_SHEDDING, 0) > 0)
        return self._counted

    async def _silent(self) -> Look:
        self._since = self._since if self._missed else self._clock.monotonic()
        self._missed += 1
        seconds = self._clock.monotonic() - self._since
        starting = not self._served and seconds < STARTING_SECONDS
        # While it starts, whoever answers on the port may be a stranger who holds it: nobody to be asked.
        heard = Listening.SILENT if starting else await listening.probe()
        verdict = judge_silence(self._missed, seconds, heard, served=self._served)
        return Look(self._served and verdict is Verdict.SERVES, verdict=verdict, seconds=seconds)
