"""What is said on guard.sock: one JSON object per line, bounded, with a version in the first request.

Request ``{"id": 1, "method": "apply", "params": {…}}``; answer ``{"id": 1, "result": {…}}`` or
``{"id": 1, "error": {"code", "message", "hint"}}``. The first request of a connection is ``hello`` with the version.
Fields are only added; a guard of another version is replaced, never guessed at.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

VERSION = 2

#: 5,000 captured addresses render to 150 KB; a host with 100,000 stays below this.
MAX_REQUEST = 8 << 20
#: The listing of the same table as JSON, with counters.
MAX_ANSWER = 32 << 20


class RequestError(Exception):
    """A request was refused; ``code`` is a stable kebab-case word, ``hint`` says what to do."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code, self.message, self.hint = code, message, hint


@dataclass(frozen=True, slots=True)
class Request:
    """One request; ``id`` is whatever number the client chose."""

    id: int
    method: str
    params: dict[str, Any] = field(default_factory=dict)


class LineBuffer:
    """Bytes in, whole lines out. Raises ``RequestError`` when a line outgrows ``limit``."""

    def __init__(self, limit: int) -> None:
        self._limit, self._parts = limit, bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The lines that ``data`` completes, without their newline."""
        if len(self._parts) + len(data) > self._limit:
            raise RequestError("too-large", f"a line is longer than {self._limit} bytes")
        self._parts += data
        if b"\n" not in data:
            return
        *lines, rest = bytes(self._parts).split(b"\n")
        self._parts = bytearray(rest)
        yield from lines


def parse_request(line: bytes) -> Request:
    """Raises ``RequestError`` for anything that isn't a request."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RequestError("bad-request", "the line is not JSON") from error
    if not isinstance(value, dict):
        raise RequestError("bad-request", "the line is not a JSON object")
    number, method, params = value.get("id"), value.get("method"), value.get("params", {})
    if not isinstance(number, int) or not isinstance(method, str) or not isinstance(params, dict):
        raise RequestError("bad-request", "a request needs a numeric id, a method and an object of params")
    return Request(number, method, params)


def answer(number: int, result: object) -> bytes:
    return _line({"id": number, "result": result})


def failure(number: int, error: RequestError) -> bytes:
    return _line({"id": number, "error": {"code": error.code, "message": error.message, "hint": error.hint}})


def request(number: int, method: str, params: dict[str, Any]) -> bytes:
    return _line({"id": number, "method": method, "params": params})


def _line(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def take(params: dict[str, Any], name: str, kind: type, default: Any = None) -> Any:
    """A parameter of exactly this type, or ``default`` when it is absent and a default is given."""
    value = params.get(name, default)
    if value is None and default is None and name in params:
        raise RequestError("bad-request", f"{name} is null")
    # bool is an int to Python, but never a number on this wire
    if not isinstance(value, kind) or (kind in (int, float) and isinstance(value, bool)):
        raise RequestError("bad-request", f"{name} must be given as {kind.__name__}")
    return value
