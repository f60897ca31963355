"""The command line's side of the local sockets: one JSON line out, one or more JSON lines back. Standard library only.

Request ``{"id": 1, "method": "status", "params": {}}``; answer ``{"id": 1, "result": …}`` or
``{"id": 1, "error": {"code", "message", "hint", "exit"}}``. A stream of results carries ``"more": true`` in each
and ends with an answer without it. Bounds: 1 MiB for a request (the hub's socket takes 4), 32 MiB for an answer.
"""

import json
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from meshagent.model.errors import ExitCode, MeshagentError

MAX_REQUEST = 1 << 20
#: 1 MiB of YAML, each character of which JSON may write as an escape.
MAX_HUB_REQUEST = 4 << 20
MAX_ANSWER = 32 << 20
_CHUNK = 1 << 16


def call(
    path: Path | str,
    method: str,
    params: Mapping[str, Any] | None = None,
    *,
    timeout: float = 10.0,
    limit: int = MAX_REQUEST,
) -> Any:
    """Call ``method`` and return its result; ``timeout`` in seconds covers everything, ``limit`` is the server's.

    Raises what ``connect`` raises (``FileNotFoundError``, ``ConnectionError``, ``PermissionError``) when nobody can
    be reached, and ``MeshagentError``: the other end's own, ``no-answer`` after the timeout, ``bad-answer``.
    """
    deadline = time.monotonic() + timeout
    with _connect(path, timeout) as connection:
        lines = _exchange(connection, method, params, deadline, limit)
        return _result(next(lines))[0]


def stream(
    path: Path | str, method: str, params: Mapping[str, Any] | None = None, *, timeout: float | None = None
) -> Iterator[Any]:
    """Results of a watching method, as they come. ``timeout``: seconds until the end of all, None = without end."""
    deadline = None if timeout is None else time.monotonic() + timeout
    with _connect(path, 10.0) as connection:
        for line in _exchange(connection, method, params, deadline):
            result, more = _result(line)
            if not more:
                if result is not None:
                    yield result
                return
            yield result


def _connect(path: Path | str, timeout: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout)
    try:
        connection.connect(str(path))
    except TimeoutError:
        connection.close()
        raise _no_answer(path) from None
    except BaseException:
        connection.close()
        raise
    return connection


def _exchange(
    connection: socket.socket,
    method: str,
    params: Mapping[str, Any] | None,
    deadline: float | None,
    limit: int = MAX_REQUEST,
) -> Iterator[bytes]:
    """Send the request, then give the answer's lines."""
    request = json.dumps({"id": 1, "method": method, "params": params or {}}).encode() + b"\n"
    if len(request) > limit:
        raise MeshagentError("too-big", f"the request is bigger than {limit >> 20} MiB")
    try:
        connection.sendall(request)
        yield from _lines(connection, deadline)
    except TimeoutError:
        raise _no_answer(connection.getpeername()) from None


def _lines(connection: socket.socket, deadline: float | None) -> Iterator[bytes]:
    buffer = bytearray()
    searched = 0
    while True:
        end = buffer.find(b"\n", searched)
        if end >= 0:
            line, searched = bytes(buffer[:end]), 0
            del buffer[: end + 1]
            yield line
            continue
        searched = len(buffer)
        if searched > MAX_ANSWER:
            raise MeshagentError("bad-answer", f"the answer is bigger than {MAX_ANSWER >> 20} MiB")
        connection.settimeout(None if deadline is None else max(deadline - time.monotonic(), 0.001))
        data = connection.recv(_CHUNK)
        if not data:
            raise ConnectionResetError("the other end closed the connection without an answer")
        buffer += data


def _result(line: bytes) -> tuple[Any, bool]:
    try:
        answer = json.loads(line)
        error = answer.get("error")
    except (ValueError, AttributeError, RecursionError):
        raise MeshagentError("bad-answer", "the answer cannot be read") from None
    if error is not None:
        raise error_from_json(error)
    return answer.get("result"), bool(answer.get("more"))


def error_to_json(error: MeshagentError) -> dict[str, Any]:
    """``{"code", "message", "hint", "exit"}``."""
    return {**error.as_dict(), "exit": int(error.exit_code)}


def error_from_json(error: Any) -> MeshagentError:
    """The error as it was raised at the other end."""
    fields = error if isinstance(error, dict) else {}
    exit_code = fields.get("exit")
    return MeshagentError(
        str(fields.get("code", "bad-answer")),
        str(fields.get("message", "the answer cannot be read")),
        hint=str(fields.get("hint", "")),
        exit_code=ExitCode(exit_code) if exit_code in set(ExitCode) else ExitCode.FAILED,
    )


def _no_answer(path: object) -> MeshagentError:
    return MeshagentError(
        "no-answer",
        f"{path} did not answer in time",
        hint="the daemon is busy or hangs; see its log",
        exit_code=ExitCode.UNHEALTHY,
    )
