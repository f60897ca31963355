"""Where the control plane's connections are made: mutual TLS with the identity of that moment.

Every error of gRPC becomes a ``MeshagentError`` here; above nobody knows grpc. The two streams of an agent share one
connection, which is half of what a hub computes for a thousand agents that come back; but none joins a connection on
which a stream has ended. So a stream that is opened again is on a new connection with the certificate of that moment:
a rotation, or a way that swallows packets, needs nothing but the next stream.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc.aio
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse
from google.protobuf.message import Message

from meshagent.agent.upstream.signer import CallError
from meshagent.model.address import HostPort
from meshagent.model.errors import MeshagentError
from meshagent.model.identity import Identity
from meshagent.protocol.pb.istio_ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from meshagent.protocol.pb.meshagent_v1_pb2 import Announcement, AnnouncementResult
from meshagent.protocol.types import ProtocolError
from meshagent.transport.channel import (
    HUB_PING_SECONDS,
    announce_stream,
    create_certificate_call,
    delta_ads_stream,
    error_of,
    hub_channel,
)

#: A host that vanished answers nothing; the next address is tried after this.
CONNECT_SECONDS = 5.0

#: Where there is no next one: a hub to which 1,000 agents come back at once answers the last after 8 s; who gives up
#: before has cost it a handshake for nothing.
ALONE_SECONDS = 10.0

_EOF: Any = vars(grpc.aio)["EOF"]  # the stubs of grpc don't know it

Q = TypeVar("Q", bound=Message)
A = TypeVar("A", bound=Message)


class CallStream(Generic[Q, A]):
    """A stream both ways over one gRPC call."""

    def __init__(self, call: Any) -> None:
        self._call = call

    async def send(self, message: Q) -> None:
        """Waits for flow control. Raises ``MeshagentError`` when the stream is over."""
        with _explained():
            await self._call.write(message)

    async def __aiter__(self) -> AsyncIterator[A]:
        """Messages until the other end closes; raises ``MeshagentError`` when the stream breaks."""
        while (message := await self._read()) is not _EOF:
            yield message

    async def _read(self) -> Any:
        with _explained():
            message = await self._call.read()
        if message is None:
            raise ProtocolError("the control plane sent bytes that are no message")
        return message


@dataclass(eq=False, slots=True)
class _Shared:
    """A connection that streams may join; closed with the last of them."""

    identity: Identity
    channel: grpc.aio.Channel
    streams: int = 0


class Dialer:
    """Connects to control planes that prove to be ``server_name`` under the roots of our own bundle.

    ``patience``: seconds until one that doesn't answer counts as not reached.
    """

    def __init__(
        self, server_name: str, *, ping_seconds: float = HUB_PING_SECONDS, patience: float = CONNECT_SECONDS
    ) -> None:
        self._server_name = server_name
        self._ping_seconds = ping_seconds
        self._patience = patience
        self._joinable: dict[HostPort, _Shared] = {}

    @asynccontextmanager
    async def ads(
        self, address: HostPort, identity: Identity
    ) -> AsyncIterator[CallStream[DeltaDiscoveryRequest, DeltaDiscoveryResponse]]:
        """A delta ADS stream (``session.Dial``)."""
        async with self._shared(address, identity) as channel:
            call = delta_ads_stream(channel)
            await _connected(call, address, self._patience)
            try:
                yield CallStream(call)
            finally:
                call.cancel()

    @asynccontextmanager
    async def announce(
        self, address: HostPort, identity: Identity
    ) -> AsyncIterator[CallStream[Announcement, AnnouncementResult]]:
        """An announcement stream (``announce.AnnounceDial``)."""
        async with self._shared(address, identity) as channel:
            call = announce_stream(channel)
            await _connected(call, address, self._patience)
            try:
                yield CallStream(call)
            finally:
                call.cancel()

    async def create_certificate(
        self, address: HostPort, identity: Identity, request: IstioCertificateRequest
    ) -> IstioCertificateResponse:
        """One CSR (``signer.Call``)."""
        async with self._channel(address, identity) as channel:
            try:
                return await create_certificate_call(channel, request)
            except grpc.aio.AioRpcError as error:
                raise CallError(error.code().name, error.details() or "") from None

    @asynccontextmanager
    async def _shared(self, address: HostPort, identity: Identity) -> AsyncIterator[grpc.aio.Channel]:
        shared = self._joinable.get(address)
        if shared is None or shared.identity != identity:
            shared = self._joinable[address] = _Shared(identity, self._open(address, identity))
        shared.streams += 1
        try:
            yield shared.channel
        finally:
            shared.streams -= 1
            if self._joinable.get(address) is shared:
                del self._joinable[address]
            if not shared.streams:
                await shared.channel.close(grace=None)

    @asynccontextmanager
    async def _channel(self, address: HostPort, identity: Identity) -> AsyncIterator[grpc.aio.Channel]:
        channel = self._open(address, identity)
        try:
            yield channel
        finally:
            await channel.close(grace=None)

    def _open(self, address: HostPort, identity: Identity) -> grpc.aio.Channel:
        return hub_channel(
            address,
            roots_pem=identity.bundle_pem,
            server_name=self._server_name,
            identity=identity,
            ping_seconds=self._ping_seconds,
        )


async def _connected(call: Any, address: HostPort, patience: float) -> None:
    try:
        async with asyncio.timeout(patience):
            with _explained():
                await call.wait_for_connection()
    except TimeoutError:
        call.cancel()
        why = f"{address} did not answer within {patience:g} s"
        raise MeshagentError("hub-unreachable", why, hint="is the hub running, and the port open?") from None


@contextmanager
def _explained() -> Iterator[None]:
    """gRPC's ways to say that a stream is over, as one error.

    A status CANCELLED from the other end (a hub that stops sends it) comes as ``CancelledError``, as if our own task
    had been cancelled; ``Task.cancelling`` tells the two apart.
    """
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise error_of(error) from None
    except asyncio.InvalidStateError:
        raise _closed() from None
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise _closed() from None


def _closed() -> MeshagentError:
    return MeshagentError("hub-closed", "the control plane closed the stream")
