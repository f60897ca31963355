"""One health check of one process, over a socket that our own capture rules let pass.

HTTP is a request of five lines and a look at the status line (RFC 9112): a library would cost 5 MB to read 12 bytes.
200 to 399 is healthy, as Kubernetes has it.
"""

import asyncio
import socket

from meshagent.model.address import IPAddress
from meshagent.model.service import Check

_STATUS_LINE_LIMIT = 4096


async def run_check(check: Check, ip: IPAddress, port: int, *, mark: int | None) -> str | None:
    """Check the process at ``ip:port``: None when it is well, else what was wrong in a few words."""
    what = f"{_shown(ip)}:{port}"
    try:
        async with asyncio.timeout(check.timeout):
            return await _check(check, ip, port, mark, what)
    except TimeoutError:
        return f"no answer from {what} within {check.timeout:g} s"
    except ConnectionRefusedError:
        return f"nothing listens on {what}"
    except OSError as error:
        return f"{what}: {error.strerror or type(error).__name__}"


async def _check(check: Check, ip: IPAddress, port: int, mark: int | None, what: str) -> str | None:
    sock = socket.socket(socket.AF_INET if ip.version == 4 else socket.AF_INET6, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if mark is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        await asyncio.get_running_loop().sock_connect(sock, (str(ip), port))
        if sock.getsockname()[:2] == sock.getpeername()[:2]:  # an ephemeral port met itself (simultaneous open)
            return f"nothing listens on {what}"
        if check.kind == "tcp":
            return None
        return await _http(sock, check.path, what)
    finally:
        sock.close()


async def _http(sock: socket.socket, path: str, what: str) -> str | None:
    loop = asyncio.get_running_loop()
    lines = (f"GET {path} HTTP/1.1", f"Host: {what}", "User-Agent: meshagent-check", "Accept: */*", "Connection: close")
    await loop.sock_sendall(sock, ("\r\n".join(lines) + "\r\n\r\n").encode("ascii"))
    head = b""
    while b"\n" not in head and len(head) < _STATUS_LINE_LIMIT:
        more = await loop.sock_recv(sock, 1024)
        if not more:
            break
        head += more
    return _judge(head, path)


def _judge(head: bytes, path: str) -> str | None:
    words = head.partition(b"\n")[0].split()
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not (words[1].isdigit() and len(words[1]) == 3):
        return f"GET {path}: the answer is not HTTP"
    status = int(words[1])
    return None if 200 <= status <= 399 else f"GET {path}: status {status}"


def _shown(ip: IPAddress) -> str:
    return f"[{ip}]" if ip.version == 6 else str(ip)
