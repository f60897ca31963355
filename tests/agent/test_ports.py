"""Whose sockets stand in the way of ours, as a table."""

import os
import socket
from ipaddress import ip_address

import pytest

from meshagent.agent.ports import NEEDS, Taken, blocked_families, look, strangers
from meshagent.machine.sockets import Listener, Owner

PROXY, ME = 990, 77


def listener(ip: str, port: int, *, dual: bool = False, uid: int = 0, pid: int = 5) -> Listener:
    return Listener(ip_address(ip), port, dual, uid, 1, (Owner(pid, "nginx", "/usr/sbin/nginx"),) if pid else ())


@pytest.mark.parametrize(
    ("tcp", "said"),
    [
        (listener("127.0.0.1", 15001), ["port 15001 on 127.0.0.1 is held by nginx (pid 5)"]),
        (listener("0.0.0.0", 15001), ["port 15001 on 127.0.0.1 is held by nginx (pid 5)"]),
        (
            listener("::", 15001, dual=True),
            ["port 15001 on 127.0.0.1 is held by nginx (pid 5)", "port 15001 on ::1 is held by nginx (pid 5)"],
        ),
        (listener("::", 15001), ["port 15001 on ::1 is held by nginx (pid 5)"]),
        (listener("10.0.0.1", 15001), []),
        (listener("10.0.0.1", 15008), ["port 15008 on 0.0.0.0 is held by nginx (pid 5)"]),
        (listener("::1", 15053), ["port 15053 on ::1 is held by nginx (pid 5)"]),
        (listener("127.0.0.1", 15002), []),
        (listener("127.0.0.1", 15001, uid=PROXY), []),
        (listener("127.0.0.1", 15053, pid=ME), []),
        (listener("::1", 15001, pid=0), ["port 15001 on ::1 is held by a program that can't be seen from here"]),
    ],
)
def test_a_socket_stands_in_the_way_where_the_kernel_would_refuse_ours(tcp: Listener, said: list[str]) -> None:
    assert [each.text for each in strangers([tcp], [], frozenset({PROXY}), ME)] == said


def test_udp_and_tcp_of_one_number_are_different_ports() -> None:
    found = strangers([], [listener("0.0.0.0", 15053), listener("0.0.0.0", 15001)], frozenset())
    assert [each.text for each in found] == ["UDP port 15053 on 127.0.0.1 is held by nginx (pid 5)"]


def test_only_the_port_of_captured_connections_blocks_a_family() -> None:
    taken = [Taken(need, 1, "x") for need in NEEDS]
    assert blocked_families(taken) == {4, 6}
    assert blocked_families(each for each in taken if each.need.port != 15001) == frozenset()


@pytest.mark.root
def test_real_sockets_are_seen_with_their_program() -> None:
    """Port 15053 is not used by anything on a machine that runs tests: its own network namespace holds no agent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 15053))
        assert not [each for each in look(frozenset()) if each.pid == os.getpid()], "our own process is no stranger"
