"""Listeners and connections with their owners, login servers whatever their port."""

import asyncio
import os
import socket
from ipaddress import ip_address

import pytest

from meshagent.lab import Lab, recipes
from meshagent.machine import sockets


def test_a_listener_is_found_with_its_owner_and_families() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (found,) = [each for each in sockets.listeners() if each.port == port]
    assert found.ip == ip_address("127.0.0.1")
    assert (found.pid, found.uid) == (os.getpid(), os.geteuid())
    assert found.process.startswith(("python", "pytest"))
    assert "python" in found.exe
    assert found.families == {4}
    assert not found.wildcard


@pytest.mark.parametrize(("dual", "families"), [(True, {4, 6}), (False, {6})])
def test_an_ipv6_wildcard_takes_ipv4_only_when_it_really_does(dual: bool, families: set[int]) -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=dual) as server:
        port = server.getsockname()[1]
        (found,) = [each for each in sockets.listeners() if each.port == port]
    assert found.wildcard
    assert found.families == families


def test_connections_are_seen_from_both_ends() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        accepted, _ = server.accept()
        with accepted:
            ends = {(c.local_port, c.remote_port): c for c in sockets.connections()}
            pair = (client.getsockname()[1], server.getsockname()[1])
            assert {pair, pair[::-1]} <= set(ends)
            assert ends[pair].owners[0].pid == os.getpid()


def test_a_half_closed_connection_is_open_until_its_processes_are_done_with_it() -> None:
    """A client that has sent its question and shut that side down may read the answer for hours."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        accepted, _ = server.accept()
        pair = (client.getsockname()[1], server.getsockname()[1])
        client.shutdown(socket.SHUT_WR)
        assert accepted.recv(1) == b""
        found = {(c.local_port, c.remote_port): c for c in sockets.connections()}
        assert {pair, pair[::-1]} <= set(found)
        assert found[pair].owners[0].pid == os.getpid()
        accepted.close()  # the kernel alone sees to the rest
        client.close()
        assert not {pair, pair[::-1]} & {(c.local_port, c.remote_port) for c in sockets.connections()}


def test_looking_works_from_an_event_loop() -> None:
    async def look() -> int:
        return len(sockets.listeners())

    with socket.create_server(("127.0.0.1", 0)):
        assert asyncio.run(look()) >= 1


@pytest.mark.root
def test_sshd_is_found_on_whatever_port_and_only_in_its_own_network(lab: Lab) -> None:
    server, other = lab.host("server"), lab.host("other")
    recipes.sshd(server, 2222)
    code = "from meshagent.machine.sockets import listeners, login_ports; print(*login_ports(listeners()))"
    assert server.python(code).split() == ["2222"]
    assert other.python(code).split() == []
