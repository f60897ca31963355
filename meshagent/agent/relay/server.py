"""The ADS that Envoy sees: every stream of a Unix socket joined to the one relay."""

import itertools
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from envoy.config.core.v3.base_pb2 import Node
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest

from meshagent.agent.relay.relay import Relay
from meshagent.protocol.entry import Snapshot
from meshagent.protocol.publisher import Verdict
from meshagent.runtime.latest import Latest
from meshagent.transport.ads_server import AdsServer, Ending, end_streams
from meshagent.transport.grpc_server import Call, Stream, add_methods, bind_unix, local_peer, new_server
from meshagent.transport.unix import Access, remove

#: The number of the stream that the running task serves.
_number: ContextVar[int] = ContextVar("stream")


class _EnvoyStream:
    """One stream of Envoy (``transport.ads_server.AdsSession``)."""

    def __init__(self, relay: Relay, number: int, closed: Callable[["_EnvoyStream"], None]) -> None:
        self.ended: Latest[Ending | None] = Latest(None)
        self._closed = closed
        self._relay = relay
        self._number = number

    @property
    def snapshot(self) -> Latest[Snapshot]:
        return self._relay.snapshot

    def on_verdict(self, verdict: Verdict) -> None:
        self._relay.heard(self._number, verdict)

    def on_subscription(self, type_url: str, wildcard: bool, names: frozenset[str]) -> None:
        """Names are derived from the configuration itself (``references``), Envoy asks for nothing else."""
        del wildcard, names
        self._relay.asked(type_url)

    async def close(self) -> None:
        self._closed(self)


class _Listening:
    """A gRPC context that also tells the relay that Envoy (re)connected, and what it claims to have."""

    def __init__(self, context: Any, relay: Relay, number: int) -> None:
        self._context = context
        self._relay = relay
        self._number = number
        self._opened = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def read(self) -> Any:
        request = await self._context.read()
        if isinstance(request, DeltaDiscoveryRequest):
            if not self._opened:
                self._opened = True
                self._relay.stream_opened(self._number)
            if request.initial_resource_versions:
                self._relay.claimed(self._number, request.type_url, dict(request.initial_resource_versions))
        return request


class RelayServer:
    """Serves ``relay`` on ``socket``. ``gid``: group of the proxy's user, which may connect (mode 0660)."""

    def __init__(self, relay: Relay, socket: Path, gid: int | None = None) -> None:
        self._relay = relay
        self._socket = socket
        self._access = Access(mode=0o660, uid=None if gid is None else 0, gid=gid)
        self._numbers = itertools.count(1)
        self._streams: set[_EnvoyStream] = set()
        self._server = new_server()
        self._placed: tuple[int, int] | None = None

    def bind(self) -> None:
        """From here on Envoy may connect, and is answered once this is started.

        Raises ``MeshagentError`` ``already-running`` when another agent serves this root.
        """
        add_methods(self._server, [self._listening(h) for h in AdsServer(self._open).handlers()], local_peer)
        self._placed = bind_unix(self._server, self._socket, self._access)

    async def start(self) -> None:
        """Answer. Raises as ``bind`` does, unless that was called before."""
        if self._placed is None:
            self.bind()
        await self._server.start()

    async def stop(self) -> None:
        """Envoy keeps what it has, and comes back when somebody serves here again."""
        end_streams(self._streams)
        await self._server.stop(grace=1.0)
        remove(self._socket, self._placed)

    def _listening(self, handler: Stream) -> Stream:
        async def serve(context: Any, call: Call) -> None:
            number = next(self._numbers)
            _number.set(number)  # each call is a task of its own
            try:
                await handler.serve(_Listening(context, self._relay, number), call)
            finally:
                self._relay.stream_closed(number)

        return Stream(handler.method, serve, handler.parse)

    async def _open(self, node: Node, call: Call) -> _EnvoyStream:
        del node, call
        stream = _EnvoyStream(self._relay, _number.get(), self._streams.discard)
        self._streams.add(stream)
        return stream
