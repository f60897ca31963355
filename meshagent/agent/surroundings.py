"""What can turn against capture while it runs, though nobody touched us: conntrack's table that fills up."""

import asyncio
from collections.abc import Callable

from meshagent.agent.judge.sysctls import is_nearly_full
from meshagent.machine import sysctls
from meshagent.model.condition import ConditionSink

#: A table fills over minutes, in a flood over seconds; reading two files costs 20 µs.
_LOOK_SECONDS = 5.0
_CODE = "conntrack-nearly-full"


class Surroundings:
    """``run`` reports conditions. ``conntrack`` gives (entries, most), None where there is no table."""

    def __init__(
        self, conditions: ConditionSink, conntrack: Callable[[], tuple[int, int] | None] = sysctls.conntrack
    ) -> None:
        self._conditions, self._conntrack = conditions, conntrack
        self._nearly_full = False

    async def run(self, interval: float = _LOOK_SECONDS) -> None:
        """Look until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(interval)

    def look(self) -> None:
        """One look now."""
        count, most = self._conntrack() or (0, 0)
        self._nearly_full = is_nearly_full(count, most, was=self._nearly_full)
        if self._nearly_full:
            self._conditions.set(_CODE, f"{count} of {most} entries")
        else:
            self._conditions.clear(_CODE)
