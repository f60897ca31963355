"""Serving Envoy what was known last, and the identity it had: from disk, before anybody else is asked.

Everything that Envoy waits for while it starts, and nothing more; the rest of the agent is loaded meanwhile.
"""

import asyncio
import contextlib

from meshagent.agent.first import First, identity_damaged
from meshagent.agent.identity.sds import SdsServer
from meshagent.agent.relay import adapt
from meshagent.agent.relay.cache import Cache
from meshagent.agent.relay.relay import Relay
from meshagent.agent.relay.server import RelayServer
from meshagent.machine.facts import ipv6_family
from meshagent.model.identity import Identity
from meshagent.protocol.entry import Snapshot
from meshagent.protocol.types import LDS
from meshagent.runtime.latest import Latest

#: It asks for its listeners, the last of what it needs, 0.4 s after the first answer with 1,000 services.
_FEEDING_SECONDS = 1.0


class LastKnown:
    """``relay`` serves what was on disk, ``restored``; ``identity`` is the newest set. Both are there once started."""

    identity: Latest[Identity]
    restored: Snapshot

    def __init__(self, first: First) -> None:
        self._proxy = first.proxy
        self._keystore, paths, gid = first.keystore, first.paths, first.footprint.gid
        self.cache = Cache(paths.state / "config.cache", first.clock, first.tracker)
        self.relay = Relay(self.cache, first.tracker, adapt=adapt.identity if ipv6_family() else adapt.without_ipv6)
        self._sds = SdsServer(paths.sds_socket, gid)
        self._server = RelayServer(self.relay, paths.xds_socket, gid)

    async def start(self, down: contextlib.AsyncExitStack) -> None:
        """Serve; ``down`` ends it. Raises ``MeshagentError`` without an identity.

        Envoy may connect before there is something to say: who finds nobody comes back later than that. Clusters go
        first: it asks for secrets once it has read of them, and what reads a certificate takes a while to load.
        """
        for server in (self._sds, self._server):
            server.bind()
            down.push_async_callback(server.stop)
        self.restored = self.relay.restore()
        await self._server.start()
        self.identity = Latest(await asyncio.to_thread(self._identity))
        await self._sds.start(self.identity)

    def _identity(self) -> Identity:
        found = self._keystore.load_identity()
        if found is None:
            raise identity_damaged()
        return found

    async def fed(self) -> None:
        """Until Envoy was given all it needs to serve; not for long where it doesn't ask, or runs already.

        Whatever else this process does meanwhile makes it wait for its answers.
        """
        if self._proxy.state.value.adopted:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FEEDING_SECONDS):
                await self.relay.asked_for(LDS)

    async def read_ahead(self) -> None:
        """While Envoy takes in what it is served, read what others will want to know once it has."""
        await self.relay.follow()
        await asyncio.to_thread(self.relay.taps.read_ahead, self.restored.get(LDS, {}))
