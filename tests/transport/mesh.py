"""A front with a gRPC server behind it on loopback, as a hub has them, for the tests of this directory."""

import contextlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any

import grpc.aio

from meshagent.model.address import HostPort
from meshagent.model.identity import Identity
from meshagent.transport.channel import hub_channel
from meshagent.transport.front_limits import Limits
from meshagent.transport.grpc_server import Handler, add_methods, bind_loopback, new_server
from meshagent.transport.listener import TlsFront, server_context
from meshagent.transport.serving import Server
from tests.fakes.authority import Authority


@dataclass
class Hub:
    authority: Authority
    front: TlsFront
    server: Server
    grpc_port: int
    context: Any

    def channel(self, identity: Identity | None = None, index: int = 0, **overrides: str) -> grpc.aio.Channel:
        options = {"roots_pem": self.authority.root_pem, "server_name": "hub.mesh.internal", **overrides}
        return hub_channel(self.front.addresses[index], identity=identity, **options)


@contextlib.asynccontextmanager
async def hub(handlers: Iterable[Handler], limits: Limits | None = None, v6: bool = False) -> AsyncIterator[Hub]:
    """A running hub front; ``hub.context`` may be replaced by another TLS context."""
    authority = Authority()
    chain_pem, key_pem = authority.hub()
    context = server_context(chain_pem=chain_pem, key_pem=key_pem, roots_pem=authority.root_pem)
    server = new_server()
    port = bind_loopback(server)
    addresses = [HostPort("127.0.0.1", 0), *([HostPort("::1", 0)] if v6 else [])]
    front = TlsFront(addresses, lambda: running.context, port, limits)
    add_methods(server, handlers, front.peer_of)
    running = Hub(authority, front, server, port, context)
    await server.start()
    await front.start()
    try:
        yield running
    finally:
        await server.stop(0)
        await front.close()
