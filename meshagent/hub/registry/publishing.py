"""When the mesh's state is built anew: at once for a single change, together for a storm of them."""

import asyncio
from collections.abc import Callable

from meshagent.hub.state import MeshState
from meshagent.runtime.latest import Latest

#: Changes that come within this many seconds of each other are published together: a thousand agents that come back
#: at once cost at most fifty states a second, and a single change waits for nobody.
COALESCE = 0.02


class Publishing:
    """``build`` is called on the event loop; what it gives becomes the value of ``state``."""

    def __init__(self, state: Latest[MeshState], build: Callable[[], MeshState]) -> None:
        self._state = state
        self._build = build
        self._pending: asyncio.TimerHandle | None = None
        self._not_before = float("-inf")

    def soon(self) -> None:
        """Something changed."""
        if self._pending is None:
            loop = asyncio.get_running_loop()
            self._pending = loop.call_at(max(loop.time(), self._not_before), self.now)

    def now(self) -> None:
        """Build and publish without waiting."""
        loop = asyncio.get_running_loop()
        if self._pending is not None:
            self._pending.cancel()
        self._pending = None
        began = loop.time()
        self._state.set(self._build())
        # a big mesh under a storm of changes spends at most a fifth of a core here
        self._not_before = loop.time() + max(COALESCE, 4 * (loop.time() - began))
