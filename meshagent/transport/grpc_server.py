"""gRPC servers with the settings every one of ours has, and methods written as plain async functions.

A method gets its request and a ``Call`` (who calls); it raises ``MeshagentError`` or ``RefusedCallError`` to say no.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import grpc
import grpc.aio
import structlog
from grpc._cython import cygrpc

from meshagent.model.errors import MeshagentError
from meshagent.transport import unix
from meshagent.transport.methods import Method, serialize
from meshagent.transport.peer import Peer
from meshagent.transport.serving import Server

#: gRPC's own "connection" address -> who is there, or None to refuse the call.
PeerOf = Callable[[str], Peer | None]

#: Requests of ours are small: a CSR, an announcement of 1,000 services, a subscription of 100,000 names (8 MiB).
MAX_REQUEST = 8 << 20

#: Calls that may wait until the event loop takes them. By default gRPC (1.85) cancels some from 1,000 on, such as those
#: of a fleet that comes back with two streams each; connections are bounded where they come in.
MAX_WAITING = 10_000

#: What ``context.read()`` gives when the client will send no more.
EOF: Any = vars(grpc.aio)["EOF"]

#: What gRPC raises in a call that goes on after its server stopped: no failure of the call, and nobody hears of it.
SERVER_STOPPED: type[Exception] = vars(cygrpc)["_ServerStoppedError"]

log = structlog.get_logger()


class RefusedCallError(MeshagentError):
    """A refusal with the gRPC status that tells a client whether to try again.

    Any other ``MeshagentError`` goes out as FAILED_PRECONDITION.
    """

    def __init__(self, status: grpc.StatusCode, code: str, message: str, *, hint: str = "") -> None:
        super().__init__(code, message, hint=hint)
        self.status = status


@dataclass(frozen=True, slots=True)
class Call:
    """Who calls: ``peer`` as the TLS front saw it (``Peer.local`` on a Unix socket), and the call's metadata."""

    peer: Peer
    metadata: Mapping[str, str]


def new_server() -> Server:
    """A server that notices a vanished client within 10 s (a ping every 5 s, 5 s to answer)."""
    return Server(
        [
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", MAX_REQUEST),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_concurrent_streams", 64),
            ("grpc.max_metadata_size", 16 << 10),
            ("grpc.server.max_pending_requests", MAX_WAITING),
            ("grpc.server.max_pending_requests_hard_limit", 2 * MAX_WAITING),
            ("grpc.keepalive_time_ms", 5_000),
            ("grpc.keepalive_timeout_ms", 5_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.http2.min_ping_interval_without_data_ms", 1_000),  # our agents ping every 5 s
            ("grpc.http2.max_ping_strikes", 0),
        ]
    )


def bind_loopback(server: Server) -> int:
    """Bind behind a TLS front; returns the port the front connects to."""
    return server.add_insecure_port("127.0.0.1:0")


def bind_unix(server: Server, path: Path, access: unix.Access) -> tuple[int, int] | None:
    """Bind a Unix socket with owner and mode set; returns what ``unix.remove`` wants to clean up after ``stop``.

    Raises ``MeshagentError`` (``already-running``) when a live process answers there.
    """
    with unix.placed(path, access) as temporary:
        server.add_insecure_port(f"unix:{temporary}")
    return unix.inode(path)


def local_peer(_address: str) -> Peer:
    """``PeerOf`` of a Unix socket: the file's owner and mode have already said who may connect."""
    return Peer.local()


def add_methods(server: Server, handlers: Iterable["Handler"], peer_of: PeerOf) -> None:
    """Serve ``handlers``; a call whose connection ``peer_of`` doesn't know is refused."""
    services: dict[str, dict[str, Any]] = {}
    for handler in handlers:
        _, service, name = handler.method.path.split("/")
        services.setdefault(service, {})[name] = handler.build(peer_of)
    server.add_generic_rpc_handlers(
        tuple(grpc.method_handlers_generic_handler(service, table) for service, table in services.items())
    )


@dataclass(frozen=True, slots=True)
class Unary:
    """A method with one request and one response."""

    method: Method[Any, Any]
    serve: Callable[[Any, Call], Awaitable[Any]]

    def build(self, peer_of: PeerOf) -> Any:
        async def behaviour(request: Any, context: Any) -> Any:
            try:
                return await self.serve(request, call_of(context, peer_of))
            except Exception as error:
                await refuse(context, error, self.method.path)

        return grpc.unary_unary_rpc_method_handler(behaviour, self.method.parse_request, serialize)


@dataclass(frozen=True, slots=True)
class Stream:
    """A method with streams both ways: ``serve`` reads from and writes to the gRPC context itself.

    ``await context.read()`` gives a message or ``EOF``; ``await context.write(m)`` waits for flow control. A client
    that goes away ends ``serve`` by a cancellation or, in the middle of a write, by an error of gRPC's own: no news.
    ``parse`` in place of the method's own deserialiser.
    """

    method: Method[Any, Any]
    serve: Callable[[Any, Call], Awaitable[None]]
    parse: Callable[[bytes], Any] | None = None

    def build(self, peer_of: PeerOf) -> Any:
        async def behaviour(_requests: Any, context: Any) -> None:
            try:
                await self.serve(context, call_of(context, peer_of))
            except grpc.aio.InternalError as error:  # "Failed execute_batch": nobody is there to be told
                log.debug("client gone in the middle of an answer", method=self.method.path, reason=str(error)[:200])
            except Exception as error:
                await refuse(context, error, self.method.path)

        return grpc.stream_stream_rpc_method_handler(behaviour, self.parse or self.method.parse_request, serialize)


Handler = Unary | Stream


def call_of(context: Any, peer_of: PeerOf) -> Call:
    """Who is behind a gRPC context."""
    peer = peer_of(context.peer())
    if peer is None:
        raise RefusedCallError(
            grpc.StatusCode.UNAUTHENTICATED, "unknown-connection", "connections come through the TLS front"
        )
    return Call(peer, {key: value for key, value in context.invocation_metadata() if isinstance(value, str)})


async def refuse(context: Any, error: Exception, path: str) -> NoReturn:
    """End a call with an error: message as the status text, code, hint and exit code as trailing metadata.

    The metadata keys end in ``-bin`` because plain ones carry only ASCII.
    """
    if isinstance(error, asyncio.CancelledError | grpc.aio.AbortError | SERVER_STOPPED):
        raise error
    if not isinstance(error, MeshagentError):
        log.error("call failed", method=path, exc_info=error)
        error = RefusedCallError(
            grpc.StatusCode.INTERNAL, "internal", "internal error", hint="the hub's log has the details"
        )
    status = error.status if isinstance(error, RefusedCallError) else grpc.StatusCode.FAILED_PRECONDITION
    trailing = (
        ("meshagent-code-bin", error.code.encode()),
        ("meshagent-hint-bin", error.hint.encode()),
        ("meshagent-exit-bin", str(int(error.exit_code)).encode()),
    )
    await context.abort(status, error.message[:2_000], trailing)
    raise AssertionError  # abort raises
