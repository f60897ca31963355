"""Nothing that the proxy sends comes back to it, and nobody reaches its ports but by redirect."""

import contextlib
import errno
import socket
import struct
import threading
from functools import partial

import pytest

from meshagent.config.settings import CaptureConfig, OutboundScope
from meshagent.model.marks import PROXY_MARK
from meshagent.model.ports import DNS, OWN_LOCAL_PORTS
from meshagent.model.posture import Posture
from tests.agent.capture.stand import OTHER_UID, SO_MARK, Stand, mesh

pytestmark = pytest.mark.root

FLOOD = 200


class FailingProxy:
    """What Envoy does while an upstream is down: connects with its mark, fails, resets the caller."""

    def __init__(self, stand: Stand, target: tuple[str, int]) -> None:
        self.accepted = 0
        self.ends: dict[str, int] = {}
        self._stand, self._target = stand, target
        self._listener = stand.host.listen(15001, stand.loopback)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()

    def _run(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            end = self._upstream()
            self.ends[end] = self.ends.get(end, 0) + 1
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            caller.close()

    def _upstream(self) -> str:
        with self._stand.host.socket(self._stand.address_family) as upstream:
            upstream.setsockopt(socket.SOL_SOCKET, SO_MARK, PROXY_MARK)
            upstream.settimeout(5)
            try:
                upstream.connect(self._target)
            except OSError as error:
                return errno.errorcode.get(error.errno or 0, "timeout")
            return "connected"


@pytest.mark.parametrize("scope", OutboundScope)
def test_a_flood_of_failing_connections_makes_no_loop(stand: Stand, scope: OutboundScope) -> None:
    """With 64 source ports for 200 connections every upstream connection meets the fresh conntrack entry of a captured
    one; in the same zone it would be redirected to the proxy itself (58 % were, measured)."""
    target = (stand.own(stand.peer), 3306)  # the machine lives, nobody listens
    stand.host.run(["sysctl", "-qw", "net.ipv4.ip_local_port_range=20000 20063"])
    stand.capture(Posture.OUTBOUND, mesh(*target), config=CaptureConfig(outbound=scope))
    proxy = FailingProxy(stand, target)
    try:
        for _ in range(FLOOD):
            with stand.host.socket(stand.address_family) as caller:
                caller.settimeout(5)
                with contextlib.suppress(ConnectionResetError):  # often before connect() has returned
                    caller.connect(target)
                    assert caller.recv(1) == b""
    finally:
        proxy.close()
    assert proxy.accepted == FLOOD, "the proxy met nobody but the callers"
    assert proxy.ends == {"ECONNREFUSED": FLOOD}, "every one of its own connections got where it was meant to go"


def test_our_ports_are_refused_to_other_hosts_and_to_local_users(stand: Stand) -> None:
    servers = [stand.serve(stand.host, port, "ours") for port in OWN_LOCAL_PORTS]
    stand.capture(Posture.STRICT, mesh(stand.virtual, 6379), config=CaptureConfig(outbound=OutboundScope.ALL))

    for port in OWN_LOCAL_PORTS:
        with pytest.raises(ConnectionRefusedError):
            stand.dial(stand.own(stand.host), port, stand.peer)
        for address in (stand.loopback, stand.own(stand.host)):
            assert stand.dial_as(OTHER_UID, address, port) == "ECONNREFUSED"
    assert not any(server.accepted for server in servers)


def test_the_resolver_is_refused_over_udp_too(stand: Stand) -> None:
    """From other hosts it is not reached at all: it listens on loopback only."""
    stand.capture(Posture.OUTBOUND)
    with stand.host.inside(partial(socket.socket, stand.address_family, socket.SOCK_DGRAM)) as resolver:
        resolver.bind((stand.loopback, DNS))
        with stand.host.inside(partial(socket.socket, stand.address_family, socket.SOCK_DGRAM)) as client:
            client.settimeout(3)
            client.connect((stand.loopback, DNS))
            with pytest.raises(OSError) as refused:  # as the backend can: not permitted, or refused
                client.send(b"query")
                client.recv(64)
            assert not isinstance(refused.value, TimeoutError)
        resolver.setblocking(False)
        with pytest.raises(BlockingIOError):
            resolver.recv(64)
