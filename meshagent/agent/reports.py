"""Turns what other parts publish into conditions: the control plane away, clocks apart, a service refused."""

import asyncio

from meshagent.agent.health.tracker import Tracker
from meshagent.agent.identity.hubclock import SKEW_LIMIT, HubClock
from meshagent.agent.identity.schedule import time_left_text
from meshagent.agent.upstream.state import UpstreamState
from meshagent.model.condition import Condition, Severity
from meshagent.protocol.pb.meshagent_v1_pb2 import AnnouncementResult
from meshagent.runtime.latest import Latest, any_newer

_LOOK_SECONDS = 5.0


def status_line(services: int, peers: int, hub: UpstreamState, conditions: tuple[Condition, ...]) -> str:
    """What ``systemctl status`` shows: services declared here, services of the mesh known here, what is wrong."""
    parts = [f"serving {services} services", f"{peers} peers", "hub connected" if hub.connected else "hub away"]
    wrong = [condition for condition in conditions if condition.severity is Severity.ERROR]
    if wrong:
        parts.append(wrong[0].title + (f" (and {len(wrong) - 1} more)" if wrong[1:] else ""))
    return ", ".join(parts)


class Reports:
    """Watches until cancelled."""

    def __init__(
        self,
        tracker: Tracker,
        upstream: Latest[UpstreamState],
        hub_clock: HubClock,
        announced: Latest[AnnouncementResult | None],
    ) -> None:
        self._tracker, self._upstream, self._hub_clock, self._announced = tracker, upstream, hub_clock, announced

    async def run(self) -> None:
        """Three watchers, until cancelled."""
        await asyncio.gather(self._control_plane(), self._clock(), self._services())

    async def _control_plane(self) -> None:
        async for state in self._upstream.watch():
            if state.connected or state.since is None:
                self._tracker.clear("hub-unreachable")
            else:
                self._tracker.set("hub-unreachable", state.last_error)
            if state.violation:
                self._tracker.set("hub-misbehaves", state.violation)
            else:
                self._tracker.clear("hub-misbehaves")

    async def _clock(self) -> None:
        while True:
            version = self._announced.version  # every answer brings the hub's time
            skew = self._hub_clock.skew
            if abs(skew) > SKEW_LIMIT:
                side = "ahead of" if skew.total_seconds() > 0 else "behind"
                self._tracker.set("clock-skew", f"it is {time_left_text(abs(skew))} {side} the hub's")
            else:
                self._tracker.clear("clock-skew")
            await any_newer([self._announced], [version], _LOOK_SECONDS)

    async def _services(self) -> None:
        async for result in self._announced.watch():
            if result is None:
                continue
            refused = {answer.name: answer.reason for answer in result.services if not answer.accepted}
            for name, reason in refused.items():
                self._tracker.set("announcement-refused", f"{name}: {reason}", name)
            self._tracker.clear_others("announcement-refused", set(refused))
