"""Ports that no program of this test process gets by accident.

A port that the kernel picked for one socket (``bind`` to port 0) can be in use for the other protocol, or become the
source port of a connection before the test binds it again: both come from ``ip_local_port_range``. These come from
below it, each once per process, and every test process has a network namespace of its own.
"""

import itertools
import os
import socket

_LOW, _HIGH = 20_000, 32_000  # below ip_local_port_range (32768…), above what services are known for
# Where a process has no namespace of its own (not root), two of them begin at different places.
_candidates = itertools.cycle(range(_LOW, _HIGH))
for _ in range(os.getpid() * 37 % (_HIGH - _LOW)):
    next(_candidates)


def free_port() -> int:
    """A port that nobody has on loopback, TCP or UDP, IPv4 or IPv6, and that isn't handed out again soon."""
    for _ in range(_HIGH - _LOW):
        port = next(_candidates)
        if all(_free(port, *kind) for kind in _KINDS):
            return port
    raise RuntimeError(f"no free port between {_LOW} and {_HIGH}")


_KINDS = [
    (family, kind) for family in (socket.AF_INET, socket.AF_INET6) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)
]


def _free(port: int, family: socket.AddressFamily, kind: socket.SocketKind) -> bool:
    try:
        with socket.socket(family, kind) as probe:
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind(("::" if family == socket.AF_INET6 else "", port))
    except OSError:
        return False
    return True
