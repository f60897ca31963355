"""Envoy's admin interface over its Unix socket: few calls, each bounded in time and size.

Plain HTTP/1.1 with ``Connection: close`` written by hand: one request per connection, no library, no keep-alive state.
"""

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshagent.model.errors import MeshagentError

#: The largest answer is ``/clusters`` of a mesh of 1,000 services, about 6 MB.
MAX_BODY = 32 << 20
MAX_HEAD = 64 << 10
_PIECE = 64 << 10

#: A healthy Envoy answers in a millisecond; its main thread is busy for half a second with 1,000 new clusters.
TIMEOUT = 2.0

_CRED = struct.Struct("=3i")  # struct ucred: pid, uid, gid


class AdminError(MeshagentError):
    """The admin interface did not answer as it should: the proxy is gone, hung, or still starting."""

    def __init__(self, why: str) -> None:
        super().__init__("proxy-admin", f"the proxy's admin interface {why}", hint="see `meshagent status`")


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer."""

    status: int
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")


class Admin:
    """The admin interface of one epoch."""

    def __init__(self, path: Path, timeout: float = TIMEOUT) -> None:
        self.path = path
        self._timeout = timeout

    async def owner(self) -> int:
        """Pid of the process that made this socket listen (SO_PEERCRED, unix(7)); a hung one is named too."""
        try:
            async with asyncio.timeout(self._timeout):
                _, writer = await asyncio.open_unix_connection(self.path)
        except (TimeoutError, OSError) as error:
            raise AdminError("can't be reached") from error
        try:
            peer = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CRED.size)
        finally:
            writer.close()
        return int(_CRED.unpack(peer)[0])

    async def state(self) -> str:
        """``LIVE``, ``DRAINING``, ``PRE_INITIALIZING`` or ``INITIALIZING`` (``/ready``)."""
        return (await self._call("GET", "/ready", accept=(200, 503))).text.strip()

    async def stats(self, pattern: str, kind: str = "All") -> Mapping[str, int]:
        """Counters and gauges whose names match ``pattern`` (RE2, matched anywhere in the name).

        ``kind`` ``Gauges`` (or ``Counters``) looks through those alone: 4 ms of the main thread instead of 13 with
        1,000 services (1.40.0), whatever the pattern.
        """
        quoted = "".join(c if c.isalnum() or c in "._-" else f"%{ord(c):02X}" for c in pattern)
        answer = await self._call("GET", f"/stats?format=json&type={kind}&filter={quoted}")
        found = _object(answer).get("stats", [])
        return {s["name"]: s["value"] for s in found if isinstance(s.get("value"), int)}

    async def prometheus(self) -> bytes:
        """Every statistic that was ever used, as Prometheus reads them (``/stats/prometheus?usedonly``)."""
        return (await self._call("GET", "/stats/prometheus?usedonly")).body

    async def server_info(self) -> Mapping[str, Any]:
        """Version, epoch, uptime, command line (``/server_info``)."""
        return _object(await self._call("GET", "/server_info"))

    async def clusters(self) -> Mapping[str, Any]:
        """Every cluster with its hosts (``/clusters?format=json``, ``envoy.admin.v3.Clusters``)."""
        return _object(await self._call("GET", "/clusters?format=json"))

    async def clusters_text(self, take: Callable[[bytes], None]) -> None:
        """The same as lines, with the numbers of each host (``/clusters``), to ``take`` piece by piece."""
        await self._call("GET", "/clusters", take=take)

    async def listeners(self) -> Mapping[str, Any]:
        """Active listeners (``/listeners?format=json``, ``envoy.admin.v3.Listeners``)."""
        return _object(await self._call("GET", "/listeners?format=json"))

    async def certs(self) -> Mapping[str, Any]:
        """Certificates in use, never keys (``/certs``, ``envoy.admin.v3.Certificates``)."""
        return _object(await self._call("GET", "/certs"))

    async def config_dump(self) -> Mapping[str, Any]:
        """Everything it runs with, endpoints too; keys are masked by Envoy (``/config_dump?include_eds``)."""
        return _object(await self._call("GET", "/config_dump?include_eds"))

    async def logging(self, level: str = "") -> Mapping[str, str]:
        """Logger -> level; ``level``, one of Envoy's words, is set for all of them first."""
        text = (await self._call("POST", f"/logging?level={level}" if level else "/logging")).text
        pairs = (line.split(":", 1) for line in text.splitlines() if line.startswith(" ") and ":" in line)
        return {name.strip(): value.strip() for name, value in pairs}

    async def drain_listeners(self) -> None:
        """Stop taking connections politely; what is open goes on (``graceful&skip_exit``)."""
        await self._call("POST", "/drain_listeners?graceful&skip_exit")

    async def fail_healthcheck(self) -> None:
        """From now on ``/ready`` says no."""
        await self._call("POST", "/healthcheck/fail")

    async def _call(
        self, method: str, path: str, accept: tuple[int, ...] = (200,), take: Callable[[bytes], None] | None = None
    ) -> Answer:
        """With ``take`` a chunked body goes there, not into the answer."""
        try:
            async with asyncio.timeout(self._timeout):
                answer = await self._exchange(method, path, take)
        except TimeoutError as error:
            raise AdminError(f"did not answer within {self._timeout:g} s") from error
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            raise AdminError("can't be reached") from error
        if answer.status not in accept:
            raise AdminError(f"answered {answer.status} to {path.partition('?')[0]}")
        return answer

    async def _exchange(self, method: str, path: str, take: Callable[[bytes], None] | None) -> Answer:
        reader, writer = await asyncio.open_unix_connection(self.path, limit=MAX_HEAD)
        try:
            length = "Content-Length: 0\r\n" if method == "POST" else ""
            writer.write(f"{method} {path} HTTP/1.1\r\nHost: admin\r\n{length}Connection: close\r\n\r\n".encode())
            await writer.drain()
            return await _read_answer(reader, take)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def _read_answer(reader: asyncio.StreamReader, take: Callable[[bytes], None] | None) -> Answer:
    """RFC 9112: status line, headers, then a chunked body, one of a stated length, or all until the end."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    status = int(head[0].removeprefix("HTTP/1.1 ")[:3])
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
    if headers.get("transfer-encoding", "").lower() == "chunked":
        body = bytearray()
        await _read_chunks(reader, take or body.extend)
        return Answer(status, bytes(body))
    if "content-length" in headers:
        return Answer(status, await reader.readexactly(_bounded(int(headers["content-length"]))))
    return Answer(status, await reader.read(MAX_BODY))


async def _read_chunks(reader: asyncio.StreamReader, take: Callable[[bytes], None]) -> None:
    read = 0
    while size := int((await reader.readline()).split(b";")[0], 16):
        read = _bounded(read + size)
        while size:
            piece = await reader.read(min(size, _PIECE))
            if not piece:
                raise asyncio.IncompleteReadError(b"", size)
            size -= len(piece)
            take(piece)
        await reader.readexactly(2)


def _bounded(size: int) -> int:
    if not 0 <= size <= MAX_BODY:
        raise ValueError("answer too large")
    return size


def _object(answer: Answer) -> Mapping[str, Any]:
    try:
        value = json.loads(answer.body)
    except ValueError as error:
        raise AdminError("answered something else than JSON") from error
    if not isinstance(value, dict):
        raise AdminError("answered something else than an object")
    return value
