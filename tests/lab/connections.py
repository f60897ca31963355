"""Open connections of real programs that know whether they ever lost, doubled or changed anything.

Each counts: what arrives carries numbers that must follow one another. ``go_on`` waits until more has arrived on all;
``finish`` ends a connection and raises when it was not the same one all the time. Four kinds: a printing ssh session, a
Redis subscription, a Redis client that is idle or busy, and a bulk transfer.
"""

import contextlib
import itertools
import socket
import struct
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from meshagent.lab import Host, Program, recipes, wait_until
from meshagent.lab.recipes import Service

SSH, REDIS, BULK = 22, 6379, 9000
CLOSED = "the other end closed it"
_PATIENCE = 60.0  # seconds; only a connection that is stuck takes them


class Open(Protocol):
    """An open connection: its name for messages, how far it is, what went wrong, its end."""

    name: str

    @property
    def count(self) -> int: ...
    @property
    def fault(self) -> str: ...
    def finish(self) -> None: ...


def go_on(connections: Sequence[Open], more: int = 5) -> None:
    """Wait until more has arrived on each of them; raises naming the one that stands still or failed."""
    targets = [connection.count + more for connection in connections]
    for connection, target in zip(connections, targets, strict=True):
        _reaches(connection, target)


def _reaches(connection: Open, target: int) -> None:
    wait_until(lambda: connection.count >= target or connection.fault, _PATIENCE, f"{connection.name} going on")
    assert not connection.fault, f"{connection.name}: {connection.fault}"


class Ssh:
    """A login whose terminal prints a number every 50 ms."""

    _CODE = "import itertools, time\nfor n in itertools.count(): print(n, flush=True); time.sleep(0.05)"

    def __init__(self, client: Host, server: Service, address: str) -> None:
        self.name = f"ssh {client.name} to {address}"
        command = f"{sys.executable} -c '{self._CODE}'"
        self._program = client.popen(recipes.ssh_argv(server, address, command), log=f"ssh-{id(self)}")
        _reaches(self, 1)

    @property
    def count(self) -> int:
        return self._program.text().count("\n")

    @property
    def fault(self) -> str:
        return "" if self._program.alive else f"ended: {self._program.tail(3)}"

    def finish(self) -> None:
        assert not self.fault, f"{self.name}: {self.fault}"
        self._program.stop()
        lines = self._program.text().split("\n")[:-1]
        assert lines == [str(number) for number in range(len(lines))], f"{self.name}: lines lost or doubled"


class _Threaded:
    """Reads in a thread until closed; ``fault`` says what went wrong there."""

    def __init__(self, name: str, connection: socket.socket) -> None:
        self.name = name
        self.count, self.fault = 0, ""
        self._socket = connection
        self._ends = (connection.getsockname(), connection.getpeername())
        connection.settimeout(None)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        raise NotImplementedError

    def _run(self) -> None:
        try:
            self._read()
            self.fault = CLOSED
        except (OSError, ValueError) as error:
            self.fault = f"{error!r} after {self.count}"

    def finish(self) -> None:
        assert not self.fault, f"{self.name}: {self.fault}"
        assert (self._socket.getsockname(), self._socket.getpeername()) == self._ends
        self.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(_PATIENCE)
        self._socket.close()


class Subscription(_Threaded):
    """A client of a Redis channel on which numbers are published: the server speaks, the client never does."""

    def __init__(self, client: Host, address: str, channel: str = "news") -> None:
        connection = client.connect(address, REDIS)
        connection.sendall(f"SUBSCRIBE {channel}\r\n".encode())
        self._file = connection.makefile("rb")
        while (line := self._file.readline()) != b":1\r\n":  # how many channels it has now
            if not line:
                raise ConnectionError(f"{address} closed the subscription at once")
        super().__init__(f"subscription {client.name} to {address}", connection)

    def _read(self) -> None:
        expected = -1
        while line := self._file.readline():
            if line == b"$14\r\n":  # only the payload is fourteen bytes long
                number = int(self._file.readline())
                if expected not in (-1, number):
                    raise ValueError(f"{number} came where {expected} was due")
                expected, self.count = number + 1, self.count + 1


class Publisher:
    """Publishes rising numbers of fourteen digits on a server's channel ``news``, from the server itself."""

    def __init__(self, server: Host) -> None:
        code = (
            "import itertools, socket, time\n"
            f"s = socket.create_connection(('127.0.0.1', {REDIS})); f = s.makefile('rb')\n"
            "for n in itertools.count(10**13):\n"
            "    s.sendall(b'PUBLISH news %d\\r\\n' % n); f.readline(); time.sleep(0.05)"
        )
        self.program: Program = server.popen([sys.executable, "-c", code], log="publisher")


class IdleRedis:
    """A Redis client that says nothing until it is asked whether it still is who it was."""

    def __init__(self, client: Host, address: str) -> None:
        self.name = f"idle redis {client.name} to {address}"
        self._socket = client.connect(address, REDIS, timeout=_PATIENCE)
        self._file = self._socket.makefile("rb")
        self._id = self._ask()

    def _ask(self) -> bytes:
        self._socket.sendall(b"CLIENT ID\r\n")
        return self._file.readline()

    count, fault = 0, ""

    def is_who_it_was(self) -> None:
        """Raises unless the server knows it by the number it had."""
        try:
            said = self._ask()
        except OSError as error:
            raise AssertionError(f"{self.name}: {error!r}") from error
        assert said == self._id, f"{self.name}: {said!r} instead of {self._id!r}"

    def finish(self) -> None:
        self.is_who_it_was()
        self.close()

    def close(self) -> None:
        self._file.close()
        self._socket.close()


class BusyRedis(IdleRedis):
    """A Redis client that counts in a thread: every answer must be one more than the last."""

    def __init__(self, client: Host, address: str) -> None:
        super().__init__(client, address)
        self.name = f"busy redis {client.name} to {address}"
        self._key = f"count-{id(self)}"
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._ending.wait(0.05):
                self._socket.sendall(f"INCR {self._key}\r\n".encode())
                answer = self._file.readline()
                if answer != b":%d\r\n" % (self.count + 1):
                    raise OSError(f"{answer!r} after {self.count}")
                self.count += 1
        except OSError as error:
            self.fault = repr(error)

    def finish(self) -> None:
        self._ending.set()
        self._thread.join(_PATIENCE)
        assert not self.fault, f"{self.name}: {self.fault}"
        self.is_who_it_was()
        self.close()


_NUMBERS = 2048  # per block: 16 KiB


class Bulk(_Threaded):
    """A transfer of numbers of eight bytes, from the server to the client or (``up``) the other way, 0.3 MB/s."""

    def __init__(self, client: Host, server: "BulkServer", address: str, *, up: bool = False) -> None:
        connection = client.connect(address, BULK)
        connection.sendall(b"U" if up else b"D")
        self._other = server.accepted()
        reads, self._writes = (self._other, connection) if up else (connection, self._other)
        name = f"bulk {'from' if up else 'to'} {client.name} over {address}"
        self._writer = threading.Thread(target=self._write, daemon=True)
        self._ending = threading.Event()
        super().__init__(name, reads)
        self._writer.start()

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            for number in itertools.count(step=_NUMBERS):
                if self._ending.wait(0.05):
                    break
                self._writes.sendall(struct.pack(f"!{_NUMBERS}Q", *range(number, number + _NUMBERS)))
            self._writes.shutdown(socket.SHUT_WR)

    def _read(self) -> None:
        size, expected, waiting = 8 * _NUMBERS, 0, b""
        while data := self._socket.recv(1 << 16):
            waiting += data
            while len(waiting) >= size:
                if waiting[:size] != struct.pack(f"!{_NUMBERS}Q", *range(expected, expected + _NUMBERS)):
                    raise ValueError(f"block {expected // _NUMBERS} is not what was sent")
                expected, waiting, self.count = expected + _NUMBERS, waiting[size:], self.count + 1
        if not self._ending.is_set() or waiting:
            raise ValueError(f"ended early, {len(waiting)} bytes into a block")

    def finish(self) -> None:
        """The sender closes first; everything it sent must have arrived."""
        assert not self.fault, f"{self.name}: {self.fault}"
        self._ending.set()
        self._thread.join(_PATIENCE)
        assert self.fault == CLOSED, f"{self.name}: {self.fault}"
        self.close()

    def close(self) -> None:
        self._ending.set()
        super().close()
        self._writes.close()


class BulkServer:
    """Listens on a host for bulk transfers; the other end of each is in this process too."""

    def __init__(self, host: Host) -> None:
        self._listener = host.listen(BULK, "0.0.0.0" if host.address4 and not host.address6 else "::")
        self._listener.settimeout(_PATIENCE)

    def accepted(self) -> socket.socket:
        """The connection that was just made."""
        while True:
            connection, _ = self._listener.accept()
            connection.settimeout(_PATIENCE)
            if connection.recv(1) in (b"U", b"D"):  # a health check says nothing
                connection.settimeout(None)
                return connection
            connection.close()


@dataclass(frozen=True)
class Servers:
    """What runs on a host for others to be connected with."""

    host: Host
    ssh: Service
    bulk: BulkServer

    def opened(self, client: Host, address: str) -> list[Open]:
        """One connection of each busy kind from ``client`` to ``address``."""
        return [
            Ssh(client, self.ssh, address),
            Subscription(client, address),
            BusyRedis(client, address),
            Bulk(client, self.bulk, address),
            Bulk(client, self.bulk, address, up=True),
        ]

    def through_the_mesh(self, client: Host, redis: str, bulk: str) -> list[Open]:
        """As ``opened`` at the addresses of two services, without ssh, whose port is never in the mesh."""
        return [
            Subscription(client, redis),
            BusyRedis(client, redis),
            Bulk(client, self.bulk, bulk),
            Bulk(client, self.bulk, bulk, up=True),
        ]


def serve(host: Host) -> Servers:
    """sshd, Redis with a publisher, and a server for bulk transfers."""
    recipes.redis(host)
    Publisher(host)
    return Servers(host, recipes.sshd(host, SSH), BulkServer(host))


@contextlib.contextmanager
def all_going_on(connections: list[Open]) -> Iterator[list[Open]]:
    """Connections (more may be added) that all must be whole when the block ends."""
    yield connections
    for connection in connections:
        connection.finish()
