"""Delta discovery over gRPC, for the hub's agents and for the agent's Envoy: streams around ``protocol.publisher``.

Each stream gets a session from the factory, by the node of its first request and by who calls. The stream then
follows the session's snapshot. Between two writes only the newest snapshot counts, and a write waits for the client's
flow control, so a slow client costs one response in memory, not a queue.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol

import grpc
import structlog
from envoy.config.core.v3.base_pb2 import Node

from meshagent.protocol.greetings import Greetings
from meshagent.protocol.publisher import Publisher, Reaction, Snapshot, Verdict
from meshagent.protocol.types import ProtocolError, short_name
from meshagent.runtime.latest import Latest
from meshagent.transport.grpc_server import EOF, Call, RefusedCallError, Stream
from meshagent.transport.methods import DELTA_ADS, Method

#: A client opens the stream in order to ask: one that stays silent this long is not one of ours.
FIRST_MESSAGE_SECONDS = 10.0

#: A client that accepts nothing for this long is stuck; closing lets it come back with what it has.
WRITE_SECONDS = 60.0

log = structlog.get_logger()


class AdsSession(Protocol):
    """What one client should have, and who hears what it says.

    ``snapshot``: the desired state; types that are absent are not known yet (``{}`` = wait). ``ended``: set to a
    reason (a gRPC status and a message) to end the stream; None until then.
    """

    @property
    def snapshot(self) -> Latest[Snapshot]: ...

    @property
    def ended(self) -> Latest["Ending | None"]: ...

    def on_verdict(self, verdict: Verdict) -> None:
        """The client ACKed or NACKed a response."""

    def on_subscription(self, type_url: str, wildcard: bool, names: frozenset[str]) -> None:
        """The client's wishes for a type changed."""

    async def close(self) -> None:
        """The stream is over, whatever ended it."""


Ending = tuple[grpc.StatusCode, str]


def end_streams(sessions: Iterable[AdsSession]) -> None:
    """Before a server stops: clients are told why, and nobody waits for the end of the server's grace."""
    for session in list(sessions):
        session.ended.set((grpc.StatusCode.UNAVAILABLE, "the server stops"))


#: (node of the first request, who calls) -> session; raises ``RefusedCallError`` or ``MeshagentError`` to refuse.
OpenSession = Callable[[Node, Call], Awaitable[AdsSession]]


class AdsServer:
    """The discovery methods of one server; every stream is a session of its own."""

    def __init__(self, open_session: OpenSession, *, first_message_seconds: float = FIRST_MESSAGE_SECONDS) -> None:
        self._open_session = open_session
        self._first_message_seconds = first_message_seconds
        self._greetings = Greetings()
        self.streams = 0

    def handlers(self, *methods: Method[Any, Any]) -> list[Stream]:
        """Handlers for ``grpc_server.add_methods``; without ``methods``: the aggregated delta stream."""
        return [Stream(method, self._serve, self._greetings.parse) for method in methods or (DELTA_ADS,)]

    async def _serve(self, context: Any, call: Call) -> None:
        first = await self._first(context)
        if first is EOF:
            return
        session = await self._open_session(first.node, call)
        self.streams += 1
        try:
            is_envoy = first.node.user_agent_name == "envoy"
            publisher = Publisher(forgetful=is_envoy, whole=not is_envoy, greetings=self._greetings)
            await _AdsStream(context, session, publisher).run(first)
        except ProtocolError as error:
            raise RefusedCallError(grpc.StatusCode.INVALID_ARGUMENT, error.code, error.message) from None
        finally:
            self.streams -= 1
            await session.close()

    async def _first(self, context: Any) -> Any:
        try:
            first = await asyncio.wait_for(context.read(), self._first_message_seconds)
        except TimeoutError:
            raise RefusedCallError(grpc.StatusCode.DEADLINE_EXCEEDED, "silent", "no request came") from None
        if first is not EOF and not first.HasField("node"):
            raise RefusedCallError(grpc.StatusCode.INVALID_ARGUMENT, "no-node", "the first request carries no node")
        return first


class _AdsStream:
    """One running stream: three things may happen next — a request, a snapshot, the end."""

    def __init__(self, context: Any, session: AdsSession, publisher: Publisher) -> None:
        self._context = context
        self._session = session
        self._publisher = publisher

    async def run(self, first: Any) -> None:
        latest = self._session.snapshot
        version = latest.version
        self._publisher.on_snapshot(latest.value)
        await self._hear(first)
        reading = asyncio.ensure_future(self._context.read())
        ending = asyncio.ensure_future(self._ended())
        changing = asyncio.ensure_future(latest.newer(version))
        try:
            while True:
                await asyncio.wait({reading, changing, ending}, return_when=asyncio.FIRST_COMPLETED)
                if ending.done():
                    status, message = ending.result()
                    raise RefusedCallError(status, "stream-ended", message)
                if changing.done():
                    version = latest.version
                    changing = asyncio.ensure_future(latest.newer(version))
                    await self._send(self._publisher.on_snapshot(latest.value))
                if reading.done():
                    request = reading.result()
                    if request is EOF:
                        return
                    await self._hear(request)
                    reading = asyncio.ensure_future(self._context.read())
        finally:
            for task in (reading, changing, ending):
                task.cancel()
            await asyncio.gather(reading, changing, ending, return_exceptions=True)

    async def _ended(self) -> Ending:
        async for reason in self._session.ended.watch():
            if reason is not None:
                return reason
        raise AssertionError  # watch never ends

    async def _hear(self, request: Any) -> None:
        # an answer that wishes nothing else is the most common request, and a subscription may be thousands of names
        wishes = request.resource_names_subscribe or request.resource_names_unsubscribe or not request.response_nonce
        before = self._publisher.subscription(request.type_url) if wishes else None
        reaction = self._publisher.on_request(request)
        after = self._publisher.subscription(request.type_url) if wishes else None
        if after != before and after is not None:
            self._session.on_subscription(request.type_url, *after)
        for verdict in reaction.verdicts:
            self._session.on_verdict(verdict)
        await self._send(reaction)

    async def _send(self, reaction: Reaction) -> None:
        for response in reaction.responses:
            try:
                await asyncio.wait_for(self._context.write(response), WRITE_SECONDS)
            except TimeoutError:
                log.warning("client accepts no more responses", type=short_name(response.type_url))
                raise RefusedCallError(grpc.StatusCode.ABORTED, "stuck", "the client accepts no responses") from None
