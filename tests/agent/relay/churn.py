"""A configuration that never rests, and clients that notice: for tests of the order in which changes reach Envoy."""

import asyncio
import contextlib
import random
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from meshagent.protocol.entry import Entry, Snapshot
from meshagent.protocol.types import CDS, EDS, LDS
from tests.agent.envoy.test_process import echo_server
from tests.fakes.envoy_resources import eds_cluster, endpoints, entry, tcp_listener
from tests.ports import free_port

#: A client gives up on one exchange after so many seconds; what is lost is lost for good, so this only ends the test.
PATIENCE = 30.0


@dataclass
class _Service:
    """A port that clients dial all the time, and what stands behind it just now."""

    port: int
    cluster: str
    weight: int = 1  # endpoints
    label: int = 0  # a harmless field of the cluster
    buffer: int = 0  # one of the listener


@dataclass
class Churn:
    """``services`` ports in front of the echo server at ``target``; ``change`` alters one of them, or a bystander.

    ``quiet`` is the port of a service that never changes.
    """

    dice: random.Random
    target: int
    services: list[_Service] = field(default_factory=list)
    quiet: int = 0
    _bystanders: dict[str, int] = field(default_factory=dict)
    _born: int = 0

    def __post_init__(self) -> None:
        self.services = [_Service(free_port(), f"first{number}") for number in range(4)]
        self.quiet = free_port()

    def change(self) -> None:
        """One change; each kind is as frequent as the others."""
        service = self.dice.choice(self.services)
        self._born += 1
        self.dice.choice((self._scale, self._tune, self._rebuild, self._retarget, self._bystander))(service)

    def _scale(self, service: _Service) -> None:
        service.weight = service.weight % 5 + 1

    def _tune(self, service: _Service) -> None:
        """The same cluster in another version: it warms anew."""
        service.label = self._born

    def _rebuild(self, service: _Service) -> None:
        """The listener itself changes, not only its filters: Envoy puts another one in its place."""
        service.buffer = self._born

    def _retarget(self, service: _Service) -> None:
        """Another cluster takes over; the one before goes with its endpoints in the same breath."""
        service.cluster = f"next{self._born}"

    def _bystander(self, service: _Service) -> None:
        """A whole service comes, or goes again."""
        del service
        if len(self._bystanders) < 5:
            self._bystanders[f"by{self._born}"] = free_port()
        else:
            self._bystanders.pop(next(iter(self._bystanders)))

    def snapshot(self) -> Snapshot:
        """All of it as it should be now."""
        clusters: dict[str, Entry] = {"quiet": entry(eds_cluster("quiet"))}
        sets: dict[str, Entry] = {"quiet": entry(endpoints("quiet", self.target))}
        listeners: dict[str, Entry] = {"quiet": entry(tcp_listener("quiet", self.quiet, "quiet"))}
        for number, service in enumerate(self.services):
            cluster = eds_cluster(service.cluster)
            cluster.alt_stat_name = f"label{service.label}"
            listener = tcp_listener(f"in{number}", service.port, service.cluster)
            listener.per_connection_buffer_limit_bytes.value = 1 << 20 | service.buffer
            clusters[service.cluster] = entry(cluster)
            sets[service.cluster] = entry(endpoints(service.cluster, *[self.target] * service.weight))
            listeners[listener.name] = entry(listener)
        for name, port in self._bystanders.items():
            clusters[name] = entry(eds_cluster(name))
            sets[name] = entry(endpoints(name, self.target))
            listeners[name] = entry(tcp_listener(name, port, name))
        return {CDS: clusters, EDS: sets, LDS: listeners}


@contextlib.contextmanager
def echoing() -> Iterator[int]:
    """The port of an echo service in a thread of its own: it answers while the test's event loop is busy."""
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(echo_server())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        loop.close()


class Echoes:
    """A thread that asks an echo service at one of ``ports`` all the time, and knows what went wrong.

    ``kept``: on one connection, which must last; else on a new one for each exchange.
    """

    def __init__(self, ports: list[int], *, kept: bool = False) -> None:
        self.done, self.failures, self.slowest = 0, list[str](), 0.0
        self._ports, self._kept = ports, kept
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        connection: socket.socket | None = None
        number = 0
        while not self._ending.is_set():
            port, began = self._ports[number % len(self._ports)], time.monotonic()
            number += 1
            try:
                connection = connection or socket.create_connection(("127.0.0.1", port), PATIENCE)
                connection.sendall(b"hello")
                if (answer := connection.recv(5)) != b"hello":
                    raise ConnectionError(f"answered {answer!r}")
                self.done += 1
            except OSError as error:
                self.failures.append(f"port {port} after {self.done} exchanges: {error!r}")
                connection = _close(connection)
            self.slowest = max(self.slowest, time.monotonic() - began)
            connection = connection if self._kept else _close(connection)
            self._ending.wait(0.002)
        _close(connection)

    def __enter__(self) -> "Echoes":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join(2 * PATIENCE)
        assert not self._thread.is_alive()


def _close(connection: socket.socket | None) -> None:
    if connection is not None:
        connection.close()
