"""One question to the proxy: a connection to its listener on loopback that is never waited for.

It carries the agent's mark, so that our own rules let it pass. Nobody redirected it, so it has no destination in the
proxy and is closed at once. Any answer will do, also a refusal: whoever refuses doesn't hang.
"""

import contextlib
import errno
import socket

from meshagent.model.marks import AGENT_MARK

_PLACES = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


class Probe:
    """An open question; ``descriptor`` turns readable with the answer."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    @property
    def descriptor(self) -> int:
        return self._connection.fileno()

    def refused(self) -> bool:
        """Nobody listens there (any more)."""
        return self._connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED

    def close(self) -> None:
        self._connection.close()


def ask(port: int, place: int) -> Probe | None:
    """Dial the listener on IPv4's (``place`` 0) or IPv6's loopback; None where that is refused at once."""
    family, address = _PLACES[place % len(_PLACES)]
    try:
        connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    except OSError:  # a kernel without this family
        return None
    with contextlib.suppress(PermissionError):  # without the mark our rules refuse it, and that is an answer
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, AGENT_MARK)
    if connection.connect_ex((address, port)) in (0, errno.EINPROGRESS):
        return Probe(connection)
    connection.close()
    return None
