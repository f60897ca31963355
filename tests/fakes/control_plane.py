"""A control plane in memory, made of the real publisher: streams by ``dial``, a snapshot to set, verdicts to read."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse

from meshagent.model.address import HostPort
from meshagent.model.errors import MeshagentError
from meshagent.model.identity import Identity
from meshagent.protocol.entry import Snapshot
from meshagent.protocol.publisher import Publisher, Reaction, Verdict


class FakeStream:
    """One stream, seen from the client."""

    def __init__(self, plane: "FakeControlPlane", address: HostPort, identity: Identity) -> None:
        self.address, self.identity = address, identity
        self.publisher = Publisher(whole=True)
        self.responses: asyncio.Queue[DeltaDiscoveryResponse | None] = asyncio.Queue()
        self.requests: list[DeltaDiscoveryRequest] = []
        self._plane = plane
        self.publisher.on_snapshot(plane.snapshot)

    async def send(self, request: DeltaDiscoveryRequest) -> None:
        self.requests.append(request)
        self.react(self.publisher.on_request(request))

    async def __aiter__(self) -> AsyncIterator[DeltaDiscoveryResponse]:
        while (response := await self.responses.get()) is not None:
            yield response

    def react(self, reaction: Reaction) -> None:
        self._plane.verdicts += reaction.verdicts
        for response in reaction.responses:
            self.responses.put_nowait(response)

    def close(self) -> None:
        self.responses.put_nowait(None)


class FakeControlPlane:
    """``down`` addresses refuse; ``streams`` are the open ones; ``dials`` every attempt."""

    def __init__(self, snapshot: Snapshot | None = None) -> None:
        self.snapshot: Snapshot = snapshot or {}
        self.verdicts: list[Verdict] = []
        self.streams: list[FakeStream] = []
        self.dials: list[HostPort] = []
        self.down: set[HostPort] = set()

    @asynccontextmanager
    async def dial(self, address: HostPort, identity: Identity) -> AsyncIterator[FakeStream]:
        self.dials.append(address)
        if address in self.down:
            raise MeshagentError("hub-unreachable", f"{address} refuses")
        stream = FakeStream(self, address, identity)
        self.streams.append(stream)
        try:
            yield stream
        finally:
            self.streams.remove(stream)

    def publish(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        for stream in self.streams:
            stream.react(stream.publisher.on_snapshot(snapshot))

    def close_streams(self) -> None:
        for stream in list(self.streams):
            stream.close()
