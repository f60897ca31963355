"""The hub's TLS front: asks for an optional client certificate, which gRPC's Python server cannot, then pipes bytes.

Each TLS connection gets a loopback connection of its own to the gRPC server. The front binds that connection's local
port first and records who is behind it, so a handler finds its caller by the address gRPC reports (``peer_of``); a
loopback connection that is not in the table is someone else's and is refused there. The TLS context is asked for at
each connection, so a rotated certificate or root counts from the next one on.
"""

import asyncio
import contextlib
import errno
import os
import socket
import ssl
from asyncio import sslproto
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import structlog

from meshagent.machine import sockets
from meshagent.model.address import HostPort
from meshagent.model.errors import MeshagentError
from meshagent.transport.front_limits import Limits, SourceRate
from meshagent.transport.peer import Peer
from meshagent.transport.pipe import Pipe

#: A loopback port is not used again for this long, so that a call of its last owner which gRPC has not dispatched
#: yet can never be taken for the next owner's.
_QUARANTINE = 30.0
#: Seconds without the end of a handshake after which no more are let wait for theirs.
_QUEUED = 1.0
_LOOPBACK = "127.0.0.1"
#: x509_vfy.h; Python's ssl has no name for it.
_X509_V_FLAG_NO_CHECK_TIME = 0x200000

#: asyncio gives each TLS connection a buffer of 256 KB and fills it with zeros (Python 3.11 to 3.13), which a thousand
#: agents that mostly are silent would keep resident. A client that comes back says 112 KB at once.
sslproto.SSLProtocol.max_size = 128 << 10

log = structlog.get_logger()


def server_context(*, chain_pem: str, key_pem: bytes, roots_pem: str) -> ssl.SSLContext:
    """The hub's TLS context. ``chain_pem``: leaf, intermediates and last the root, which agents pin.

    The key never touches a disk: OpenSSL reads it from anonymous memory (memfd_create(2)).
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_OPTIONAL
    # Expiry is judged by the front. "Not valid yet" is said of no client: we issued it, so it is our own clock that
    # went back, and who is shut out for that would never hear that clocks differ.
    context.verify_flags |= _X509_V_FLAG_NO_CHECK_TIME
    context.set_alpn_protocols(["h2"])
    context.options |= ssl.OP_NO_TICKET  # a resumed session would skip the check against today's roots
    context.num_tickets = 0
    context.load_verify_locations(cadata=roots_pem)
    descriptor = os.memfd_create("tls", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, key_pem + b"\n" + chain_pem.encode())
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    return context


class TlsFront:
    """Listens on ``addresses`` (IPv4, IPv6 or names; port 0 = any) and pipes to gRPC on 127.0.0.1:``grpc_port``.

    ``context_provider`` is asked for the TLS context of each new connection (see ``server_context``).
    """

    def __init__(
        self,
        addresses: Sequence[HostPort],
        context_provider: Callable[[], ssl.SSLContext],
        grpc_port: int,
        limits: Limits | None = None,
    ) -> None:
        self._wanted = addresses
        self._context = context_provider
        self._grpc_port = grpc_port
        self._limits = limits or Limits()
        self._rate = SourceRate(self._limits.rate, self._limits.burst)
        self._listeners: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._pending = 0
        self._progress, self._ended = 0.0, asyncio.Event()  # when a handshake began or ended last
        self._peers: dict[int, Peer] = {}
        self._released: deque[tuple[float, int]] = deque()
        self._pipes: dict[int, Pipe] = {}  # the outer end of each, by loopback port

    @property
    def addresses(self) -> list[HostPort]:
        """What is listened on, with real port numbers."""
        return [HostPort(*listener.getsockname()[:2]) for listener in self._listeners]

    @property
    def connections(self) -> int:
        """Open connections, those that are still in their handshake included."""
        return len(self._peers) + self._pending

    def peer_of(self, grpc_peer: str) -> Peer | None:
        """Who is behind ``context.peer()`` of a call, e.g. ``ipv4:127.0.0.1:40000``; None = not one of ours."""
        host, _, port = grpc_peer.rpartition(":")
        return self._peers.get(int(port)) if host == f"ipv4:{_LOOPBACK}" and port.isdigit() else None

    async def start(self) -> None:
        """Listen. Raises ``MeshagentError`` (``port-taken``, ``cannot-listen``); then nothing is left open."""
        try:
            for address in self._wanted:
                self._listeners += await _listen(address)
        except BaseException:
            self._close_listeners()
            raise
        for listener in self._listeners:
            self._spawn(self._accept(listener))

    async def close(self) -> None:
        """Stop listening and end every connection."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._close_listeners()
        for pipe in list(self._pipes.values()):
            pipe.abort()
        await asyncio.sleep(0)  # lets the transports report that they are gone

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    def _spawn(self, work: "asyncio._CoroutineLike[None]") -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, remote = await loop.sock_accept(listener)
            except OSError as error:  # descriptors used up, or the client is already gone again
                log.warning("connection not accepted", reason=error.strerror)
                await asyncio.sleep(0.1)
                continue
            source = str(remote[0]).partition("%")[0]
            allowed = self._rate.allow(source, loop.time())
            if allowed:
                await self._room()
            if not allowed or self._full():
                connection.close()
                continue
            self._pending += 1
            self._progress = loop.time()
            self._spawn(self._serve(connection, source))
            await asyncio.sleep(0)  # those before it go on: a whole fleet may wait in the kernel's queue

    async def _room(self) -> None:
        """Until one more handshake may begin, as long as others end: a fleet that comes back waits in the kernel's
        queue and gets its turn; strangers who begin handshakes and say nothing hold it up for a second."""
        with contextlib.suppress(TimeoutError):
            while self._pending >= self._limits.pending:
                self._ended.clear()
                async with asyncio.timeout_at(self._progress + _QUEUED):
                    await self._ended.wait()

    def _full(self) -> bool:
        return self._pending >= self._limits.pending or self.connections >= self._limits.connections

    async def _serve(self, connection: socket.socket, source: str) -> None:
        """One connection up to the point where both pipes run by themselves."""
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            outer, pipe = await asyncio.get_running_loop().connect_accepted_socket(
                Pipe, connection, ssl=self._context(), ssl_handshake_timeout=self._limits.handshake_timeout
            )
            try:
                await self._join(outer, pipe, source)
            except BaseException:
                outer.abort()
                raise
        except (OSError, ssl.SSLError, ValueError) as error:
            connection.close()
            log.debug("connection refused", source=source, reason=getattr(error, "reason", None) or str(error))
        finally:
            self._pending -= 1
            self._progress = asyncio.get_running_loop().time()
            self._ended.set()

    async def _join(self, outer: asyncio.Transport, pipe: "Pipe", source: str) -> None:
        tls = outer.get_extra_info("ssl_object")
        if tls.selected_alpn_protocol() != "h2":
            raise OSError(errno.EPROTO, "the client does not speak HTTP/2")
        peer = Peer(source, tls.getpeercert(binary_form=True))
        _refuse_expired(peer)
        inner_socket, port = self._bind_inner()
        self._peers[port] = peer
        loop = asyncio.get_running_loop()
        back = Pipe(on_lost=lambda: self._release(port))
        try:
            await loop.sock_connect(inner_socket, (_LOOPBACK, self._grpc_port))
            await loop.create_connection(lambda: back, sock=inner_socket)
        except BaseException:
            inner_socket.close()
            self._release(port)
            raise
        self._pipes[port] = pipe
        pipe.connect(back)

    def _bind_inner(self) -> tuple[socket.socket, int]:
        """A loopback socket whose port nobody had of late. Bound before it connects: its owner is on record first."""
        now = asyncio.get_running_loop().time()
        while self._released and self._released[0][0] < now - _QUARANTINE:
            self._released.popleft()
        resting = {port for _, port in self._released}
        passed_over: list[socket.socket] = []
        try:
            for _ in range(64):
                candidate = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                passed_over.append(candidate)
                candidate.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                candidate.bind((_LOOPBACK, 0))
                port = int(candidate.getsockname()[1])
                if port not in resting:
                    passed_over.remove(candidate)
                    return candidate, port
        finally:
            for candidate in passed_over:
                candidate.close()
        raise OSError(errno.EADDRNOTAVAIL, "no loopback port is free")

    def _release(self, port: int) -> None:
        self._pipes.pop(port, None)
        if self._peers.pop(port, None) is not None:
            self._released.append((asyncio.get_running_loop().time(), port))


def _refuse_expired(peer: Peer) -> None:
    """Raises ``OSError``. Read by cryptography: what ``SSLObject.getpeercert`` makes of a certificate costs 0.5 ms."""
    if peer.not_after is not None and peer.not_after <= datetime.now(UTC):
        raise OSError(errno.EKEYEXPIRED, "the client's certificate has expired")


async def _listen(address: HostPort) -> list[socket.socket]:
    """Listening sockets for one address: one for each family a name resolves to."""
    loop = asyncio.get_running_loop()
    try:
        infos = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        return [_listener(family, where) for family, where in {(info[0], info[4]) for info in infos}]
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        raise MeshagentError(
            "port-taken" if taken else "cannot-listen",
            f"cannot listen on {address}: {error.strerror or error}{_holder(address.port) if taken else ''}",
            hint=f"see who has it: ss -ltnp sport = :{address.port}" if taken else "",
        ) from None


def _holder(port: int) -> str:
    """``, by nginx (pid 4711)``; empty where that can't be seen (a hub need not be root)."""
    with contextlib.suppress(MeshagentError, OSError):
        for each in sockets.on_ports({port}):
            if each.pid:
                return f", by {each.process} (pid {each.pid})"
    return ""


def _listener(family: int, where: object) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # 0.0.0.0 has a socket of its own
        listener.bind(where)  # type: ignore[arg-type]
        listener.listen(1_024)
    except BaseException:
        listener.close()
        raise
    return listener
