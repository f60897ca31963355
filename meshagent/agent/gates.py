"""Tells the guard whom to watch, so that bypass works without us: Envoy for claimed literals, ourselves for names.

The guard forgets watches when it restarts and processes come and go, so what it holds is compared with what it should
hold: before anything is captured, on every change and every two seconds. A gate is closed again only when the process
behind it can do its work.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable
from typing import Any

import structlog

from meshagent.agent.capture.nft import PROXY_GATE, RESOLVER_GATE
from meshagent.agent.envoy.state import ProxyState
from meshagent.guard.client import GuardClient
from meshagent.guard.decide import HUNG_GATE
from meshagent.machine import process
from meshagent.model.errors import MeshagentError
from meshagent.model.ports import OUTBOUND
from meshagent.runtime.latest import Latest

log = structlog.get_logger()

_LOOK_SECONDS = 2.0


class Gates:
    """``fail_open`` says whether literals may go around a dead proxy now; ``names`` whether the resolver serves.

    ``robbed``: a stranger holds the proxy's port; who answers there then says nothing about the proxy.
    """

    def __init__(
        self,
        guard: GuardClient,
        proxy: Latest[ProxyState],
        names: Latest[bool],
        fail_open: Callable[[], bool],
        robbed: Callable[[], bool] = lambda: False,
    ) -> None:
        self._guard, self._proxy, self._names, self._fail_open = guard, proxy, names, fail_open
        self._robbed = robbed

    async def run(self) -> None:
        """Keep the guard's watches right until cancelled."""
        while True:
            version = self._proxy.version
            with contextlib.suppress(MeshagentError):  # a guard that is away is the capture controller's business
                await asyncio.to_thread(self._set_right)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._proxy.newer(version), _LOOK_SECONDS)

    def arm(self, state: dict[str, Any], fail_open: bool) -> None:
        """Make the guard, which is in ``state``, watch whom it should; blocks for a moment. Raises ``MeshagentError``.

        Called before capture begins: an agent that hangs or dies right after must not leave a proxy unwatched.
        """
        proxy = self._proxy.value
        if proxy.pid:
            port = 0 if self._robbed() else OUTBOUND
            self._watch(state, PROXY_GATE, proxy.pid, proxy.start_time, fail_open, port)
        if self._names.value:
            own = os.getpid()
            self._watch(state, RESOLVER_GATE, own, process.start_time(own) or 0, True, 0)

    def _set_right(self) -> None:
        state = self._guard.state()
        if not state["installed"]:
            return
        self.arm(state, self._fail_open())
        proxy, bypassed = self._proxy.value, state["bypasses"].keys()
        if proxy.pid and proxy.ready and not proxy.looping and bypassed & {PROXY_GATE, HUNG_GATE}:
            self._guard.recapture(PROXY_GATE)
            log.info("captured again", gate=PROXY_GATE)
        if self._names.value and RESOLVER_GATE in bypassed:
            self._guard.recapture(RESOLVER_GATE)

    def _watch(self, state: dict[str, Any], gate: str, pid: int, started: int, opens: bool, port: int) -> None:
        if state["watches"].get(gate) != {"pid": pid, "opens": opens, "port": port}:
            self._guard.watch(gate, pid, started, opens=opens, port=port)
