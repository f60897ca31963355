"""Lists of the kernel by a bare netlink socket: long ones come whole, refusals are errors, attributes are bounded."""

import errno
import socket
import struct

import pytest

from meshagent.machine import dumping, links
from meshagent.machine.sockets import listeners


def test_a_list_of_many_datagrams_comes_whole() -> None:
    """500 listeners make about 60 kB, several times what the kernel puts into one datagram."""
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(500)]
    try:
        ports = {each.port for each in listeners()}
        assert {server.getsockname()[1] for server in servers} <= ports
    finally:
        for server in servers:
            server.close()


def test_a_request_that_the_kernel_refuses_is_an_error_with_its_number() -> None:
    with pytest.raises(OSError, match="not supported") as refused:
        dumping.dump(socket.NETLINK_ROUTE, 9999, b"")
    assert refused.value.errno == errno.EOPNOTSUPP


def test_attributes_of_a_torn_message_end_where_it_ends() -> None:
    whole = struct.pack("=HH4s", 8, 3, b"eth0") + struct.pack("=HHB3x", 5, 11 | 0x8000, 1)
    assert dumping.attributes(b"head" + whole, 4) == {3: b"eth0", 11: b"\1"}
    assert dumping.attributes(b"head" + whole[:-4], 4) == {3: b"eth0"}
    assert dumping.attributes(struct.pack("=HH", 0, 3), 0) == {}
    assert dumping.number(b"\1\0\0\0") in (1, 1 << 24)
    assert dumping.number(None) == 0


def test_reading_needs_no_library() -> None:
    assert "pyroute2" not in vars(links) and "pyroute" not in vars(links)
