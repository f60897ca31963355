"""Whether the proxy still takes connections: one to its own listener, which it closes at once when it is well.

The kernel accepts for a process that hangs, so only the answer counts. What is dialled is the listener for redirected
connections on loopback; a connection that nobody redirected has no destination there.
"""

import asyncio
import contextlib
import socket

from meshagent.agent.envoy.epochs import Listening
from meshagent.model.marks import AGENT_MARK
from meshagent.model.ports import OUTBOUND

#: A healthy proxy answers within a millisecond, on a busy machine within a hundred.
PATIENCE = 1.0


async def probe(port: int = OUTBOUND, patience: float = PATIENCE) -> Listening:
    """What a connection to ``port`` on loopback meets; bounded by ``patience`` seconds."""
    loop = asyncio.get_running_loop()
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as client:
        client.setblocking(False)
        with contextlib.suppress(PermissionError):  # without the mark our own rules refuse it: that is an answer, too
            client.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, AGENT_MARK)
        try:
            async with asyncio.timeout(patience):
                await loop.sock_connect(client, ("127.0.0.1", port))
                await loop.sock_recv(client, 1)
        except TimeoutError:
            return Listening.SILENT
        except ConnectionRefusedError:
            return Listening.NONE
        except OSError:
            return Listening.ANSWERS  # reset: somebody took it and gave it back
    return Listening.ANSWERS
