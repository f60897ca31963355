"""Foreign names over UDP: raw bytes to a real nameserver under a new id, the answer back under the client's.

Each attempt has a socket of its own: the kernel picks a random source port and, because the socket is connected,
delivers only packets from the nameserver that was asked (RFC 5452 section 9). Id and question are compared besides.
Order and fail-over are the stub resolver's own (resolv.conf(5)), only quicker: the client waits 5 s for one answer,
so three attempts start 1.5 s apart, earlier when one is refused or fails, and SERVFAIL is said after 4.5 s.
"""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from meshagent.agent.names import packet
from meshagent.agent.names.resolver import Nameserver, Upstreams
from meshagent.model.condition import ConditionSink
from meshagent.model.marks import AGENT_MARK

ATTEMPTS = 3
NEXT_AFTER = 1.5
GIVE_UP_AFTER = 4.5
#: A nameserver that did not answer is asked last for this long.
AVOIDED_FOR = 10.0
#: Each open query holds up to three descriptors of the usual 1,024.
MAX_OPEN = 256
#: One domain whose own servers are dead also ends without an answer: only several in a row mean the nameservers.
DOWN_AFTER = 3

_TRY_NEXT = {packet.SERVFAIL, packet.NOTIMP, packet.REFUSED}  # as glibc's stub does

Reply = Callable[[bytes], None]


def marked_socket(server: Nameserver, kind: socket.SocketKind, mark: int | None) -> socket.socket:
    """A non-blocking socket for ``server`` whose packets our own capture rules let pass. Raises ``OSError``."""
    sock = socket.socket(socket.AF_INET if server.ip.version == 4 else socket.AF_INET6, kind | socket.SOCK_NONBLOCK)
    try:
        if mark is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
    except OSError:
        sock.close()
        raise
    return sock


def socket_address(server: Nameserver, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
    """What ``connect`` takes; a link-local server needs its interface. Raises ``OSError`` for an unknown one."""
    if server.ip.version == 4:
        return str(server.ip), port
    scope = server.scope
    index = 0 if not scope else int(scope) if scope.isdecimal() else socket.if_nametoindex(scope)
    return str(server.ip), port, 0, index


@dataclass
class ServerHealth:
    """Which nameservers answered lately; shared by UDP and TCP. Raises ``dns-upstream-down`` when none does."""

    conditions: ConditionSink
    avoid_until: dict[Nameserver, float] = field(default_factory=dict)
    _turn: int = 0
    _unanswered: int = 0

    def order(self, servers: tuple[Nameserver, ...], rotate: bool) -> tuple[Nameserver, ...]:
        """Whom to ask first: resolv.conf's order (or in turns), those that failed lately last."""
        if rotate and servers:
            self._turn = (self._turn + 1) % len(servers)
            servers = servers[self._turn :] + servers[: self._turn]
        now = time.monotonic()
        return tuple(sorted(servers, key=lambda server: self.avoid_until.get(server, 0.0) > now))

    def answered(self, server: Nameserver) -> None:
        """``server`` works."""
        self.avoid_until.pop(server, None)
        self._unanswered = 0
        self.conditions.clear("dns-upstream-down")

    def failed(self, server: Nameserver) -> None:
        """``server`` refused or stayed silent."""
        self.avoid_until[server] = time.monotonic() + AVOIDED_FOR

    def all_failed(self, servers: tuple[Nameserver, ...]) -> None:
        """No nameserver answered a query."""
        self._unanswered += 1
        if self._unanswered < DOWN_AFTER:
            return
        names = ", ".join(map(str, servers)) or "none named in resolv.conf"
        self.conditions.set("dns-upstream-down", f"no answer from the nameservers of this host ({names})")


class UdpForwarder:
    """Passes queries on; bounded, each ends with an answer or SERVFAIL in bounded time."""

    def __init__(
        self, upstreams: Upstreams, health: ServerHealth, *, mark: int | None = AGENT_MARK, port: int = 53
    ) -> None:
        self._upstreams = upstreams
        self._health = health
        self._mark = mark
        self._port = port
        self._open: dict[tuple[object, bytes], _Flight] = {}

    @property
    def open_queries(self) -> int:
        """Queries without an answer yet."""
        return len(self._open)

    def forward(self, query: bytes, client: object, reply: Reply) -> None:
        """Pass ``query`` of ``client`` on; ``reply`` gets the answer or SERVFAIL. A repetition joins the first."""
        key = (client, query)
        if key in self._open:
            return
        plan = self._upstreams()
        order = self._health.order(plan.upstreams, plan.rotate)
        if len(self._open) >= MAX_OPEN or not order:
            reply(packet.error_reply(query, packet.SERVFAIL))
            return
        flight = _Flight(query, order, self._health, self._mark, self._port, lambda data: self._done(key, data, reply))
        self._open[key] = flight
        flight.start()

    def _done(self, key: tuple[object, bytes], data: bytes, reply: Reply) -> None:
        del self._open[key]
        reply(data)

    def close(self) -> None:
        """Drop every open query."""
        for flight in list(self._open.values()):
            flight.close()
        self._open.clear()


class _Flight:
    """One query on its way: its attempts, and the best answer so far."""

    def __init__(
        self,
        query: bytes,
        order: tuple[Nameserver, ...],
        health: ServerHealth,
        mark: int | None,
        port: int,
        done: Reply,
    ) -> None:
        self._query = query
        self._order = order
        self._health = health
        self._mark = mark
        self._port = port
        self._done = done
        self._tried = 0
        self._sockets: dict[Nameserver, socket.socket] = {}
        self._ids: dict[Nameserver, int] = {}
        self._second_best: bytes | None = None
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = self._loop.call_later(GIVE_UP_AFTER, self._give_up)

    def start(self) -> None:
        """Ask the next nameserver, and one more later if it stays silent."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        while self._tried < ATTEMPTS:
            server = self._order[self._tried % len(self._order)]
            self._tried += 1
            if self._ask(server):
                if self._tried < ATTEMPTS:
                    self._timer = self._loop.call_later(NEXT_AFTER, self._silent, server)
                return
            self._health.failed(server)
        if not self._sockets:
            self._give_up()

    def _ask(self, server: Nameserver) -> bool:
        """Send; a second attempt at one server repeats the first packet, so that a late answer still counts."""
        try:
            sock = self._sockets.get(server) or self._open(server)
            sock.send(self._ids[server].to_bytes(2, "big") + self._query[2:])
        except BlockingIOError:
            return True  # a full device queue is a lost packet, and UDP loses packets
        except OSError:
            self._forget(server)
            return False
        return True

    def _open(self, server: Nameserver) -> socket.socket:
        sock = marked_socket(server, socket.SOCK_DGRAM, self._mark)
        try:
            sock.connect(socket_address(server, self._port))
        except OSError:
            sock.close()
            raise
        self._ids[server] = int.from_bytes(os.urandom(2), "big")
        self._sockets[server] = sock
        self._loop.add_reader(sock.fileno(), self._readable, server)
        return sock

    def _readable(self, server: Nameserver) -> None:
        try:
            data = self._sockets[server].recv(65535)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:  # port unreachable: the next one at once
            self._refused(server)
            return
        if not packet.answers_question(data, self._query, self._ids[server]):
            return  # not the answer to what we asked: a forgery or a stray, wait on
        data = self._query[:2] + data[2:]
        self._health.answered(server)
        if data[3] & 0x0F in _TRY_NEXT and len(self._order) > 1:
            self._second_best = data
            self._refused(server)
        else:
            self._finish(data)

    def _refused(self, server: Nameserver) -> None:
        if self._second_best is None:
            self._health.failed(server)
        self._forget(server)
        if self._tried < min(ATTEMPTS, len(self._order)):
            self.start()
        elif not self._sockets:
            self._give_up()

    def _silent(self, server: Nameserver) -> None:
        self._health.failed(server)
        self.start()

    def _give_up(self) -> None:
        if self._second_best is None:
            self._health.all_failed(self._order)
        self._finish(self._second_best or packet.error_reply(self._query, packet.SERVFAIL))

    def _finish(self, data: bytes) -> None:
        self.close()
        self._done(data)

    def _forget(self, server: Nameserver) -> None:
        sock = self._sockets.pop(server, None)
        if sock:
            self._loop.remove_reader(sock.fileno())
            sock.close()

    def close(self) -> None:
        """End without an answer."""
        self._deadline.cancel()
        if self._timer:
            self._timer.cancel()
        for server in list(self._sockets):
            with contextlib.suppress(OSError):
                self._forget(server)
