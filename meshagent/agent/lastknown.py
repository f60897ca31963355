"""Serving Envoy what was known last, and the identity it had: from disk, before anybody else is asked.

Everything that Envoy waits for while it starts, and nothing more; the rest of the agent is loaded meanwhile.
"""

import asyncio
import contextlib

from meshagent.agent.first import First, identity_damaged
from meshagent.agent.identity.sds import SdsServer
from meshagent.agent.relay.adapt import identity, without_ipv6
from meshagent.agent.relay.cache import Cache
from meshagent.agent.relay.relay import Relay
from meshagent.agent.relay.server import RelayServer
from meshagent.machine.facts import ipv6_family
from meshagent.model.identity import Identity
from meshagent.protocol.types import LDS
from meshagent.runtime.latest import Latest


class LastKnown:
    """``identity`` is the newest set, ``restored`` what was on disk. Raises ``MeshagentError`` without an identity."""

    def __init__(self, first: First) -> None:
        found = first.keystore.load_identity()
        if found is None:
            raise identity_damaged()
        self.identity: Latest[Identity] = Latest(found)
        self.cache = Cache(first.paths.state / "config.cache", first.clock, first.tracker)
        self.relay = Relay(self.cache, first.tracker, adapt=identity if ipv6_family() else without_ipv6)
        gid = first.footprint.gid
        self._sds = SdsServer(self.identity, first.paths.sds_socket, gid)
        self._server = RelayServer(self.relay, first.paths.xds_socket, gid)
        self.restored = self.relay.restore()

    async def start(self, down: contextlib.AsyncExitStack) -> None:
        """Serve; ``down`` ends it. Secrets first: clusters and listeners wait for them."""
        for server in (self._sds, self._server):
            await server.start()
            down.push_async_callback(server.stop)

    async def read_ahead(self) -> None:
        """While Envoy takes in what it is served, read what others will want to know once it has."""
        await asyncio.to_thread(self.relay.taps.read_ahead, self.restored.get(LDS, {}))
