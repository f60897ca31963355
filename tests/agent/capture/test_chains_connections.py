"""Nothing that runs breaks: open connections over every change, and no leak while rules are replaced under load."""

import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from meshagent.lab.program import Program
from meshagent.lab.waiting import wait_until
from meshagent.model.posture import Posture
from tests.agent.capture.stand import Stand, mesh, service

pytestmark = pytest.mark.root


class Printing:
    """One end of a connection never stops talking, like a terminal that prints; ``grows``: the other still hears it."""

    def __init__(self, talks: socket.socket, listens: socket.socket) -> None:
        self._talks, self._listens = talks, listens
        self.received, self.error = 0, ""
        self._stop = threading.Event()
        for work in (self._talk, self._read):
            threading.Thread(target=work, daemon=True).start()

    def grows(self) -> bool:
        before = self.received
        wait_until(lambda: self.error or self.received > before + 1000, 5, "the printing connection to go on")
        return not self.error

    def close(self) -> None:
        self._stop.set()
        self._talks.close()
        self._listens.close()

    def _talk(self) -> None:
        try:
            while not self._stop.wait(0.005):
                self._talks.sendall(b"line\n" * 20)
        except OSError as error:
            self._fail(error)

    def _read(self) -> None:
        try:
            while data := self._listens.recv(65536):
                self.received += len(data)
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        if not self._stop.is_set():
            self.error = str(error)


@contextmanager
def printing(stand: Stand, port: int, *, inbound: bool, host_talks: bool) -> Iterator[Printing]:
    """A printing connection from the host to the peer, or (``inbound``) from the peer into the host."""
    server_host, client_host = (stand.host, stand.peer) if inbound else (stand.peer, stand.host)
    with server_host.listen(port, "0.0.0.0" if stand.family == 4 else "::") as listener:
        client = client_host.connect(stand.own(server_host), port)
        client.settimeout(None)
        server, _ = listener.accept()
    talks, listens = (server, client) if inbound == host_talks else (client, server)
    connection = Printing(talks, listens)
    try:
        yield connection
    finally:
        connection.close()


POSTURES = (Posture.OUTBOUND, Posture.PERMISSIVE, Posture.STRICT, Posture.PERMISSIVE)


def test_open_connections_survive_capture_on_change_and_off_with_a_cold_conntrack(stand: Stand) -> None:
    """Nothing tracked them before: to the kernel their next packet looks like the first of a new connection.

    Whoever speaks first after the change decides which direction that is, so there are pairs that first speak again
    under each posture, from both ends.
    """
    host, peer = stand.own(stand.host), stand.own(stand.peer)
    stand.serve(stand.peer, 3306, "machine")
    stand.serve(stand.host, 8080, "app")
    claimed = (*(mesh(peer, port) for port in (3306, 3307, 3308)), mesh(stand.virtual, 80))
    services = tuple(service(f"s{port}", port) for port in (8080, 8081, 8082))
    with ExitStack() as stack:
        idle = [
            [stack.enter_context(stand.open(peer, 3306)), stack.enter_context(stand.open(host, 8080, stand.peer))]
            for _ in range(len(POSTURES) + 2)
        ]
        busy = [
            stack.enter_context(printing(stand, 3307, inbound=False, host_talks=False)),
            stack.enter_context(printing(stand, 3308, inbound=False, host_talks=True)),
            stack.enter_context(printing(stand, 8081, inbound=True, host_talks=False)),
            stack.enter_context(printing(stand, 8082, inbound=True, host_talks=True)),
        ]
        for number, posture in enumerate(POSTURES):
            stand.capture(posture, *claimed, services=services)
            assert all(connection.says() for connection in idle[number]), posture
            assert all(connection.grows() for connection in busy), posture
        stand.capture(Posture.OBSERVE, draining=True)
        assert all(connection.says() for connection in idle[-2])
        assert all(connection.grows() for connection in busy)
        stand.remove()
        assert all(connection.grows() for connection in busy)
        assert all(connection.says() for pair in idle for connection in pair)


def test_captured_connections_survive_changes_observe_and_the_death_of_the_guard(stand: Stand) -> None:
    stand.proxy()
    claimed = mesh(stand.own(stand.peer), 3306)
    stand.capture(Posture.PERMISSIVE, claimed, mesh(stand.virtual, 80))
    with stand.open(stand.virtual, 80) as virtual, stand.open(stand.own(stand.peer), 3306) as literal:
        stand.capture(Posture.OUTBOUND, claimed)
        assert virtual.says() and literal.says()
        stand.capture(Posture.OBSERVE, draining=True)
        assert virtual.says() and literal.says()
        stand.capture(Posture.PERMISSIVE, claimed)
        stand.guard_program.kill()
        if stand.backend == "nft":
            assert virtual.says() and literal.says(), "the rules outlive their owner"
            # As the kernel does before 6.9 by itself, where the table is owned.
            stand.host.run(["nft", "delete", "table", "inet", "meshagent"], check=False)
        assert any(anchor in stand.ruleset() for anchor in ("meshagent_anchor", "-A MESHAGENT_ANCHOR"))
        assert virtual.says() and literal.says(), "the anchor keeps NAT hooked"


def test_replacing_the_rules_under_load_leaks_no_connection(stand: Stand) -> None:
    """Each captured connection says so; one that slipped past would reach the machine or be refused."""
    stand.proxy()
    stand.serve(stand.peer, 3306, "machine")
    target = stand.own(stand.peer)
    addresses = (mesh(target, 3306), mesh(stand.virtual, 80))
    stand.capture(Posture.PERMISSIVE, *addresses)
    callers = [_dialler(stand, target, 3306), _dialler(stand, stand.virtual, 80)]

    replaced = 0
    while replaced < 100:
        stand.capture(Posture.PERMISSIVE, *addresses, services=(service("s", 8000 + replaced % 7),))
        replaced += 1

    for caller in callers:
        caller.send_signal(15)
        caller.wait()
        captured, other = caller.text().split()[-2:]
        assert int(captured) > 50, caller.text()
        assert other == "0", caller.text()


def _dialler(stand: Stand, address: str, port: int) -> Program:
    """Dials without pause; on SIGTERM prints how many reached the proxy and how many did not."""
    program = stand.host.popen([sys.executable, "-c", _DIALLER, address, str(port)], log=f"dialler-{port}")
    wait_until(lambda: "dialling" in program.text(), 5, "the dialler to start")
    return program


_DIALLER = """
import signal, socket, sys
address, port = sys.argv[1], int(sys.argv[2])
running, captured, other = True, 0, 0
def stop(*_):
    global running
    running = False
signal.signal(signal.SIGTERM, stop)
print("dialling", flush=True)
while running:
    try:
        s = socket.create_connection((address, port), 3)
        if s.recv(64).startswith(b"proxy "):
            captured += 1
        else:
            other += 1
        s.close()
    except OSError as e:
        other += 1
        print(repr(e), flush=True)
print(captured, other, flush=True)
"""
