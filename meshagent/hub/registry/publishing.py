"""When the mesh's state is built anew: at once for a few changes, together for a storm of them."""

import asyncio
from collections.abc import Callable

from meshagent.hub.state import MeshState
from meshagent.runtime.latest import Latest

#: Seconds of its budget that a state costs at least: a thousand agents that come back at once make at most fifty of
#: them a second.
COALESCE = 0.02

#: Seconds of that budget that may be spent at once: the first five changes after a calm tenth of a second wait for
#: nobody, also when they come one after the other (a host's health and its neighbour's, an operator's script).
BURST = 0.1


class Publishing:
    """``build`` is called on the event loop; what it gives becomes the value of ``state``."""

    def __init__(self, state: Latest[MeshState], build: Callable[[], MeshState]) -> None:
        self._state = state
        self._build = build
        self._pending: asyncio.TimerHandle | None = None
        self._spent_until = float("-inf")  # the moment until which the budget is spent

    def soon(self) -> None:
        """Something changed."""
        if self._pending is None:
            loop = asyncio.get_running_loop()
            self._pending = loop.call_at(due(loop.time(), self._spent_until), self.now)

    def now(self) -> None:
        """Build and publish without waiting."""
        loop = asyncio.get_running_loop()
        if self._pending is not None:
            self._pending.cancel()
        self._pending = None
        began = loop.time()
        self._state.set(self._build())
        self._spent_until = spent(self._spent_until, began, loop.time())


def due(now: float, spent_until: float) -> float:
    """When the next state may be built, while the budget is spent until ``spent_until``; seconds of one clock."""
    return max(now, spent_until - BURST)


def spent(spent_until: float, began: float, ended: float) -> float:
    """Until when it is spent after one more: a big mesh under a storm of changes spends at most a fifth of a core."""
    return max(began, spent_until) + max(COALESCE, 5 * (ended - began))
