"""The sockets on which this host's programs find the agent's names: UDP and TCP, 127.0.0.1 and ::1, port 15053.

One by one, because a socket on the wildcard address may answer from another address than it was asked at. UDP is read
by ``add_reader`` and drained up to 64 datagrams per wake-up: measured 4 times the rate of a DatagramProtocol.
"""

import asyncio
import errno
import socket
import time
from dataclasses import dataclass

import structlog

from meshagent.agent.names.answer import Answerer, Verdict
from meshagent.agent.names.forward import ServerHealth, UdpForwarder
from meshagent.agent.names.recent import AskedName, RecentNames
from meshagent.agent.names.resolver import DnsPlan
from meshagent.agent.names.stream import TcpService
from meshagent.agent.names.table import NameIndex
from meshagent.model.condition import ConditionSink
from meshagent.model.errors import MeshagentError
from meshagent.model.marks import AGENT_MARK
from meshagent.model.ports import DNS
from meshagent.runtime.latest import Latest

log = structlog.get_logger()

HOSTS = ("127.0.0.1", "::1")
_PER_WAKE_UP = 64
_LONGEST_QUERY = 4096
#: A burst of a busy host's programs; the default of 208 KiB holds about 250 datagrams.
_RECEIVE_BUFFER = 1 << 20
#: IPv6 switched off, in the two ways a host can have it.
_NO_SUCH_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


@dataclass
class Counts:
    """Since the start: answered from the mesh's names, passed on, dropped as unreadable."""

    answered: int = 0
    forwarded: int = 0
    dropped: int = 0


class NamesServer:
    """Answers mesh names from ``index``, passes the rest to the nameservers of ``plan``."""

    def __init__(
        self,
        index: Latest[NameIndex],
        plan: Latest[DnsPlan],
        conditions: ConditionSink,
        *,
        hosts: tuple[str, ...] = HOSTS,
        port: int = DNS,
        mark: int | None = AGENT_MARK,
        upstream_port: int = 53,
    ) -> None:
        self._index = index
        self._hosts = hosts
        self._port = port
        self._built = -1
        self._answerer = Answerer(index.value)
        health = ServerHealth(conditions)
        self._udp = UdpForwarder(lambda: plan.value, health, mark=mark, port=upstream_port)
        self._tcp = TcpService(
            self.answerer, lambda: plan.value, health, mark=mark, port=upstream_port, note=self._note
        )
        self._sockets: list[socket.socket] = []
        self._servers: list[asyncio.Server] = []
        self.counts = Counts()
        self._recent = RecentNames()

    def asked(self) -> tuple[AskedName, ...]:
        """Names of the mesh that programs here asked for lately."""
        return self._recent.lately(time.monotonic())

    def _note(self, query: bytes) -> None:
        self._recent.note(query, self._index.value.hosts, time.monotonic())

    def answerer(self) -> Answerer:
        """The answerer of the newest index."""
        if self._built != self._index.version:
            self._built = self._index.version
            self._answerer = Answerer(self._index.value)
        return self._answerer

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """Where UDP and TCP are served."""
        return tuple(sock.getsockname()[:2] for sock in self._sockets)

    async def start(self) -> None:
        """Bind all sockets; an address family that the host has not is left out. Raises ``MeshagentError``."""
        try:
            for host in self._hosts:
                await self._listen(host)
        except BaseException:
            await self.close()
            raise
        if not self._sockets:
            raise MeshagentError("no-loopback", "this host has neither 127.0.0.1 nor ::1", hint="ip link set lo up")

    async def _listen(self, host: str) -> None:
        try:
            udp = _bound(host, self._port, socket.SOCK_DGRAM)
        except OSError as error:
            if error.errno in _NO_SUCH_ADDRESS:
                log.info("names are not served on an address this host has not", address=host)
                return
            raise _port_taken(host, self._port, error) from None
        self._sockets.append(udp)
        try:
            tcp = _bound(host, self._port, socket.SOCK_STREAM)
            self._servers.append(await asyncio.start_server(self._tcp.serve, sock=tcp))
        except OSError as error:
            raise _port_taken(host, self._port, error) from None
        asyncio.get_running_loop().add_reader(udp.fileno(), self._readable, udp)

    async def close(self) -> None:
        """Stop serving; open queries are dropped."""
        for udp in self._sockets:
            asyncio.get_running_loop().remove_reader(udp.fileno())
            udp.close()
        self._sockets.clear()
        for server in self._servers:
            server.close()
        self._servers.clear()
        await self._tcp.close()
        self._udp.close()

    def _readable(self, sock: socket.socket) -> None:
        answer, hosts, now = self.answerer().udp, self._index.value.hosts, time.monotonic()
        counts, note = self.counts, self._recent.note
        for _ in range(_PER_WAKE_UP):
            try:
                query, client = sock.recvfrom(_LONGEST_QUERY)
            except OSError:  # nothing left; or an error of an earlier reply, reported on this socket
                return
            reply = answer(query)
            if reply is Verdict.FORWARD:
                counts.forwarded += 1
                self._forward(sock, query, client)
            elif reply is Verdict.DROP:
                counts.dropped += 1
            else:
                counts.answered += 1
                note(query, hosts, now)
                _send(sock, reply, client)

    def _forward(self, sock: socket.socket, query: bytes, client: tuple[str, int]) -> None:
        self._udp.forward(query, (sock.family, client), lambda reply: _send(sock, reply, client))


def _send(sock: socket.socket, reply: bytes | Verdict, client: tuple[str, int]) -> None:
    assert isinstance(reply, bytes)
    try:
        sock.sendto(reply, client)
    except OSError:  # a full buffer or a client that left: UDP loses packets, the client asks again
        return


def _bound(host: str, port: int, kind: socket.SocketKind) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections in TIME_WAIT of our last run
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock


def _port_taken(host: str, port: int, error: OSError) -> MeshagentError:
    return MeshagentError(
        "names-port-taken",
        f"can't serve names on {host} port {port}: {error.strerror}",
        hint=f"see who holds it: ss -lnp sport = :{port}",
    )
