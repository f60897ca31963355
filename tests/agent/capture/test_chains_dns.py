"""Port-53 capture: programs ask their nameserver, the agent's resolver answers, and nobody notices or loops."""

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address

import pytest

from meshagent.agent.capture import intent as intents
from meshagent.agent.capture.values import Wishes
from meshagent.lab.host import Host
from meshagent.model.marks import AGENT_MARK
from meshagent.model.posture import Posture
from tests.agent.capture.stand import SO_MARK, Stand

pytestmark = pytest.mark.root


class Resolver:
    """Answers `<name>` over UDP and TCP, one thread; with ``upstream`` it asks there first, marked as the agent's."""

    def __init__(self, stand: Stand, address: str, port: int, name: str, host: Host | None = None, upstream: str = ""):
        self.asked, self.upstream_port, self.resets = 0, 0, False
        self._stand, self._name, self._upstream = stand, name.encode(), upstream
        where = host or stand.host
        self._host = where
        self.udp = where.socket(stand.address_family, socket.SOCK_DGRAM)
        self.udp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.udp.bind((address, port))
        self.tcp = where.listen(port, address)
        for work in (self._serve_udp, self._serve_tcp):
            threading.Thread(target=work, daemon=True).start()

    def close(self) -> None:
        for each in (self.udp, self.tcp):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _serve_udp(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                query, caller = self.udp.recvfrom(512)
                if caller is None:  # shut down
                    return
                self.asked += 1
                self.udp.sendto(self._answer(query), caller)

    def _serve_tcp(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.tcp.accept()
                self.asked += 1
                with connection:
                    query = connection.recv(512)
                    connection.sendall(self._answer(query))
                    if self.resets:
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _answer(self, query: bytes) -> bytes:
        if not self._upstream:
            return self._name + b" " + query
        with self._host.socket(self._stand.address_family, socket.SOCK_DGRAM) as up:
            up.setsockopt(socket.SOL_SOCKET, SO_MARK, AGENT_MARK)
            if self.upstream_port:
                up.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                up.bind(("", self.upstream_port))
            up.settimeout(2)
            up.connect((self._upstream, 53))
            up.send(query)
            return self._name + b" via " + up.recv(512)


@contextlib.contextmanager
def resolvers(stand: Stand, upstream: bool = False) -> Iterator[tuple[Resolver, Resolver]]:
    """The agent's resolver on the host, and the real nameserver on the peer."""
    real = Resolver(stand, stand.own(stand.peer), 53, "real", stand.peer)
    ours = Resolver(stand, stand.loopback, 15053, "ours", upstream=stand.own(stand.peer) if upstream else "")
    try:
        yield ours, real
    finally:
        ours.close()
        real.close()


def capture_dns(stand: Stand) -> None:
    facts = replace(stand.facts, nameservers=(ip_address(stand.own(stand.peer)), ip_address(stand.loopback)))
    stand.apply(intents.decide(Wishes(Posture.OUTBOUND, capture_dns=True), facts))


def ask(stand: Stand, server: str, *, kind: int = socket.SOCK_DGRAM, mark: int = 0, query: str = "q") -> str:
    """The answer; for UDP only if it comes from the address that was asked (the socket is connected)."""
    with stand.host.socket(stand.address_family, kind) as client:
        if mark:
            client.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
        client.settimeout(2)
        client.connect((server, 53))
        client.send(query.encode())
        return client.recv(512).decode()


def test_queries_to_the_nameserver_reach_our_resolver_by_udp_and_tcp_and_the_answer_comes_from_it(stand: Stand) -> None:
    with resolvers(stand):
        capture_dns(stand)

        assert ask(stand, stand.own(stand.peer)) == "ours q"
        assert ask(stand, stand.own(stand.peer), kind=socket.SOCK_STREAM) == "ours q"
        assert ask(stand, stand.loopback) == "ours q", "a local nameserver of resolv.conf is captured too"


def test_queries_to_other_servers_and_those_of_the_agent_go_direct(stand: Stand) -> None:
    with resolvers(stand):
        other = Resolver(stand, stand.own(stand.host), 53, "other")
        capture_dns(stand)

        assert ask(stand, stand.own(stand.host)) == "other q"
        assert ask(stand, stand.own(stand.peer), mark=AGENT_MARK) == "real q"
        assert ask(stand, stand.own(stand.peer), kind=socket.SOCK_STREAM, mark=AGENT_MARK) == "real q"
        other.close()


def test_two_hundred_forwarded_queries_make_no_loop(stand: Stand) -> None:
    with resolvers(stand, upstream=True) as (ours, real):
        capture_dns(stand)

        answers = {ask(stand, stand.own(stand.peer), query=str(number)) for number in range(200)}

        assert answers == {f"ours via real {number}" for number in range(200)}
        assert (ours.asked, real.asked) == (200, 200)


def test_the_agent_may_use_the_very_port_a_captured_query_came_from(stand: Stand) -> None:
    """Without zones of their own its query matches the captured entry and is redirected to itself."""
    with resolvers(stand, upstream=True) as (ours, _):
        capture_dns(stand)
        for port in range(20000, 20020):  # none that the kernel may draw for the second query
            with stand.host.socket(stand.address_family, socket.SOCK_DGRAM) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                client.settimeout(2)
                client.bind(("", port))
                client.connect((stand.own(stand.peer), 53))
                ours.upstream_port = 0
                client.send(b"first")
                assert client.recv(512) == b"ours via real first"
            ours.upstream_port = port
            assert ask(stand, stand.own(stand.peer), query="second") == "ours via real second"
        assert ours.asked == 40


def test_the_same_holds_for_a_tcp_query_that_our_resolver_reset(stand: Stand) -> None:
    """The entry of a connection that was reset from the far end stays for 10 s, with its redirect."""
    with resolvers(stand) as (ours, _):
        ours.resets = True
        capture_dns(stand)
        any_address, server = ("0.0.0.0" if stand.family == 4 else "::"), (stand.own(stand.peer), 53)
        port = 0
        for mark, who in ((0, b"ours q"), (AGENT_MARK, b"real q")):
            with stand.host.socket(stand.address_family) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                client.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
                client.settimeout(2)
                client.bind((any_address, port))
                port = client.getsockname()[1]
                client.connect(server)
                client.send(b"q")
                assert client.recv(512) == who
                with contextlib.suppress(ConnectionResetError):
                    assert client.recv(512) == b"", "the far end closes first, so the port is free at once"


def test_an_open_flow_is_captured_when_capture_goes_on_and_free_when_it_goes_off(stand: Stand) -> None:
    """A resolver with one long-lived socket: its conntrack entry must not decide for ever."""
    with resolvers(stand), stand.host.socket(stand.address_family, socket.SOCK_DGRAM) as client:
        stand.capture(Posture.OUTBOUND)  # conntrack is on, DNS not captured
        client.settimeout(2)
        client.connect((stand.own(stand.peer), 53))

        def asked() -> bytes:
            client.send(b"q")
            return client.recv(512)

        assert asked() == b"real q"
        capture_dns(stand)
        assert asked() == b"ours q"
        stand.guard.bypass("resolver", "test")
        assert asked() == b"real q"
        stand.guard.recapture("resolver")
        assert asked() == b"ours q"
        stand.remove()
        assert asked() == b"real q"


def test_a_flood_of_ports_is_answered_one_by_one(stand4: Stand) -> None:
    """Bound to each of 300 ports in turn, twice: entries of the first round still live in the second."""
    with resolvers(stand4, upstream=True) as (ours, real):
        capture_dns(stand4)
        for round_number in range(2):
            for port in range(20000, 20300):
                with stand4.host.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                    client.settimeout(2)
                    client.bind(("", port))
                    client.connect((stand4.own(stand4.peer), 53))
                    query = struct.pack("!HH", round_number, port)
                    client.send(query)
                    assert client.recv(512) == b"ours via real " + query
        assert ours.asked == real.asked == 600
