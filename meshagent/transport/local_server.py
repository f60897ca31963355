"""The daemon's side of the local sockets: JSON lines in, a table of methods, JSON lines out (see local.py).

Whatever a client sends ends at worst its own connection. Requests of one connection are served one after the other.
"""

import asyncio
import contextlib
import grp
import json
import os
import pwd
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from meshagent.model.errors import MeshagentError, UsageError
from meshagent.transport import unix
from meshagent.transport.local import MAX_ANSWER, MAX_REQUEST, error_to_json

#: A method gets its parameters and returns something JSON can say, or (written as an async generator) a stream of it.
Method = Callable[[dict[str, Any]], Awaitable[Any] | AsyncIterator[Any]]

_MAX_CONNECTIONS = 64
_IDLE = 60.0  # seconds a connection may wait between requests
_WRITE = 30.0  # seconds a client may take to read an answer

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Caller:
    """The process at the other end (SO_PEERCRED, unix(7))."""

    pid: int
    uid: int
    gid: int


#: Who called, inside a method: for the audit log.
caller: ContextVar[Caller] = ContextVar("caller")


class LocalServer:
    """Serves ``methods`` at ``path``. Callers: root, our own uid, and members of ``access.gid`` where one is given.

    ``limit``: bytes of one request.
    """

    def __init__(
        self,
        path: Path,
        methods: Mapping[str, Method],
        access: unix.Access | None = None,
        limit: int = MAX_REQUEST,
    ) -> None:
        self._path = path
        self._limit = limit
        self._methods = methods
        self._access = access or unix.Access()
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._inode: tuple[int, int] | None = None

    async def start(self) -> None:
        """Listen. Raises ``MeshagentError`` (``already-running``) when a live process answers at the path."""
        listener = unix.listen(self._path, self._access)
        self._inode = unix.inode(self._path)
        self._server = await asyncio.start_unix_server(self._connected, sock=listener, limit=self._limit)

    async def close(self) -> None:
        """Stop listening, end what is running, remove the socket if it is still ours."""
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        unix.remove(self._path, self._inode)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            who = _peer(writer)
            if len(self._connections) > _MAX_CONNECTIONS:
                await _send(writer, None, error=MeshagentError("busy", "too many connections to this socket"))
            elif not _allowed(who, self._access.gid):
                await _send(writer, None, error=MeshagentError("not-allowed", "this user may not use this socket"))
            else:
                caller.set(who)
                await self._serve(reader, writer)
        except (OSError, ValueError, TimeoutError, asyncio.CancelledError):
            pass  # the client went away, sent an endless line or nothing, or we are closing
        finally:
            self._connections.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await asyncio.wait_for(reader.readline(), _IDLE):
            identity, outcome = self._start(line)
            if isinstance(outcome, MeshagentError):
                await _send(writer, identity, error=outcome)
                if outcome.code == "bad-request":
                    return
            elif isinstance(outcome, AsyncIterator):
                await self._stream(reader, writer, identity, outcome)
            else:
                await self._answer(writer, identity, outcome)

    def _start(self, line: bytes) -> tuple[Any, "Awaitable[Any] | AsyncIterator[Any] | MeshagentError"]:
        """(id, the running method or why it cannot be run)."""
        try:
            request = json.loads(line)
            identity, name, params = request.get("id"), request.get("method"), request.get("params", {})
        except (ValueError, AttributeError, RecursionError):
            return None, UsageError("bad-request", "the request is not a JSON object on one line")
        if not isinstance(params, dict) or not isinstance(identity, int | str | None):
            return None, UsageError("bad-request", "the request's id or params are of the wrong type")
        method = self._methods.get(name) if isinstance(name, str) else None
        if method is None:
            return identity, UsageError("unknown-method", f"no method {str(name)[:64]!r} here")
        return identity, method(params)

    async def _answer(self, writer: asyncio.StreamWriter, identity: Any, running: Awaitable[Any]) -> None:
        try:
            result = await running
        except Exception as error:
            await _send(writer, identity, error=_for_people(error))
        else:
            await _send(writer, identity, result=result)

    async def _stream(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, identity: Any, results: AsyncIterator[Any]
    ) -> None:
        """Send results until they end, or until the client says anything or goes."""
        gone = asyncio.ensure_future(reader.read(1))
        pump = asyncio.ensure_future(self._pump(writer, identity, results))
        try:
            await asyncio.wait({gone, pump}, return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                raise ConnectionResetError
            await pump
        finally:
            for task in (gone, pump):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task
            if (close := getattr(results, "aclose", None)) is not None:
                await close()

    async def _pump(self, writer: asyncio.StreamWriter, identity: Any, results: AsyncIterator[Any]) -> None:
        try:
            async for result in results:
                await _send(writer, identity, result=result, more=True)
        except Exception as error:
            if isinstance(error, OSError | TimeoutError) and writer.is_closing():
                raise
            await _send(writer, identity, error=_for_people(error))
        else:
            await _send(writer, identity, result=None)


async def _send(
    writer: asyncio.StreamWriter,
    identity: Any,
    *,
    result: Any = None,
    error: MeshagentError | None = None,
    more: bool = False,
) -> None:
    body = {"error": error_to_json(error)} if error else {"result": result, **({"more": True} if more else {})}
    line = json.dumps({"id": identity, **body}, default=str, separators=(",", ":")).encode() + b"\n"
    if len(line) > MAX_ANSWER:
        too_big = error_to_json(MeshagentError("too-big", f"the answer is bigger than {MAX_ANSWER >> 20} MiB"))
        line = json.dumps({"id": identity, "error": too_big}).encode() + b"\n"
    writer.write(line)
    await asyncio.wait_for(writer.drain(), _WRITE)


def _for_people(error: Exception) -> MeshagentError:
    """What a client is told. Anything but a ``MeshagentError`` is a defect of ours: its traceback goes to the log."""
    if isinstance(error, MeshagentError):
        return error
    log.error("method failed", exc_info=error)
    return MeshagentError(
        "internal", f"internal error ({type(error).__name__})", hint="the daemon's log has the details"
    )


def _peer(writer: asyncio.StreamWriter) -> Caller:
    connection: socket.socket = writer.get_extra_info("socket")
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return Caller(*struct.unpack("3i", data))


def _allowed(who: Caller, group: int | None) -> bool:
    if who.uid in (0, os.geteuid()):
        return True
    return group is not None and (who.gid == group or _is_member(who.uid, group))


def _is_member(uid: int, group: int) -> bool:
    try:
        return pwd.getpwuid(uid).pw_name in grp.getgrgid(group).gr_mem
    except KeyError:
        return False
