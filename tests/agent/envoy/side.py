"""The agent's proxy side in one piece, for tests with a real Envoy: a session to a fake control plane, relay, SDS,
supervisor. Run as a program (``python -m tests.agent.envoy.side ROOT``) it is an agent that can be killed."""

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from envoy.config.core.v3.base_pb2 import Node

from meshagent.agent.envoy.bootstrap import ProxyNode
from meshagent.agent.envoy.ending import end
from meshagent.agent.envoy.launch import Launcher, ProxyUser
from meshagent.agent.envoy.process import Proxy
from meshagent.agent.envoy.state import ProxyState
from meshagent.agent.identity.sds import SdsServer
from meshagent.agent.relay.cache import Cache
from meshagent.agent.relay.relay import PATIENCE, Relay
from meshagent.agent.relay.server import RelayServer
from meshagent.agent.upstream.session import Session
from meshagent.config.settings import ProxyConfig
from meshagent.machine import files
from meshagent.model.address import HostPort
from meshagent.model.identity import Identity
from meshagent.model.paths import Paths
from meshagent.protocol.subscriber import Subscriber
from meshagent.protocol.types import CDS, EDS, HOST_POLICY, LDS, NDS, RDS
from meshagent.runtime.clock import SystemClock
from meshagent.runtime.latest import Latest
from tests.agent.recorder import Recorder
from tests.fakes.authority import Authority
from tests.fakes.control_plane import FakeControlPlane
from tests.fakes.signed import fresh_identity

USER = ProxyUser(61001, 61001)

#: Not the real port: these tests run in the machine's own network namespace.
GATE = 18001


@contextlib.contextmanager
def own_root() -> Iterator[Paths]:
    """A root the proxy's user can reach; pytest's own directories are closed to it. What runs there is ended."""
    root = Path(f"/run/ma-{secrets.token_hex(3)}")
    root.mkdir(mode=0o755)
    try:
        yield Paths(root)
    finally:
        asyncio.run(end(Paths(root), grace=0))
        shutil.rmtree(root)


class Side:
    """Everything between a control plane and Envoy. ``patience``: how long an offer waits for what must come first."""

    def __init__(
        self,
        paths: Paths,
        plane: FakeControlPlane,
        authority: Authority | None = None,
        *,
        patience: float = PATIENCE,
    ) -> None:
        self.paths, self.plane = paths, plane
        self.authority = authority or Authority()
        clock, self.conditions = SystemClock(), Recorder()
        files.make_dir(paths.state, mode=0o700)
        files.make_dir(paths.run, mode=0o755)
        self.identity: Latest[Identity] = Latest(fresh_identity(self.authority))
        self.cache = Cache(paths.state / "cache", clock, self.conditions, delay=0.05)
        self.relay = Relay(self.cache, self.conditions, gate=GATE, patience=patience)
        self.sds = SdsServer(paths.sds_socket, USER.gid)
        self.ads = RelayServer(self.relay, paths.xds_socket, USER.gid)
        self.subscriber = Subscriber(Node(id="n"), [CDS, LDS, NDS, HOST_POLICY], {EDS: (), RDS: ()})
        self.hub = HostPort("hub", 15012)
        self.session = Session(
            self.subscriber,
            self.relay.offer,
            self.relay.wanted,
            plane.dial,
            [self.hub],
            self.identity,
            clock,
        )
        self.settings = ProxyConfig()
        self.launcher = Launcher(paths, USER, ProxyNode("n", "c"), settings=lambda: self.settings)
        self.proxy = Proxy(paths, self.launcher, self.conditions, clock)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Side"]:
        """Until left; Envoy goes on."""
        self.subscriber.restore(self.relay.restore())
        await self.relay.follow()
        await self.sds.start(self.identity)
        await self.ads.start()
        tasks = [asyncio.create_task(part.run()) for part in (self.session, self.relay, self.proxy)]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.ads.stop()
            await self.sds.stop()

    async def ready(self, seconds: float = 20.0) -> ProxyState:
        async with asyncio.timeout(seconds):
            async for state in self.proxy.state.watch():
                if state.ready:
                    return state
        raise AssertionError


async def _main(root: Path) -> None:
    """With an unreachable control plane: what is served comes from the cache."""
    plane = FakeControlPlane()
    side = Side(Paths(root), plane)
    plane.down = {side.hub}
    async with side.running():
        async for state in side.proxy.state.watch():
            line = {"agent": os.getpid(), "pid": state.pid, "ready": state.ready, "adopted": state.adopted}
            print(json.dumps(line), flush=True)  # noqa: T201 - read by the test


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1])))
