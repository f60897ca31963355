"""Pages are read-only, bounded, and never a reason for a daemon to stop."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from meshagent.model.address import HostPort
from meshagent.observe.pages import MAX_CONNECTIONS, Page, Pages, PageServer, alive, ready_page
from tests.fakes.eventually import eventually
from tests.hub.hosts import on_loop


@dataclass
class Told:
    """A condition sink that remembers."""

    held: dict[str, str] = field(default_factory=dict)

    def set(self, code: str, text: str, key: str = "") -> None:
        self.held[code] = text

    def clear(self, code: str, key: str = "") -> None:
        self.held.pop(code, None)


async def broken() -> Page:
    raise RuntimeError("no")


async def not_ready() -> Page:
    return ready_page(["the proxy is not ready"])


PAGES: Pages = {"/healthz/live": alive, "/healthz/ready": not_ready, "/broken": broken}


@contextlib.asynccontextmanager
async def serving(told: Told, port: int = 0) -> AsyncIterator[PageServer]:
    server = PageServer(HostPort("127.0.0.1", port), PAGES, told, "taken", retry=0.02)
    task = asyncio.create_task(server.run())
    try:
        yield server
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def asked(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        return await asyncio.wait_for(reader.read(), 30)
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("request_line", "status", "body"),
    [
        ("GET /healthz/live HTTP/1.1", 200, b"alive\n"),
        ("GET /healthz/live?x=1 HTTP/1.1", 200, b"alive\n"),
        ("HEAD /healthz/live HTTP/1.1", 200, b""),
        ("GET /healthz/ready HTTP/1.1", 503, b"the proxy is not ready\n"),
        ("GET /nothing HTTP/1.1", 404, b"/healthz/live\n/healthz/ready\n/broken\n"),
        ("POST /healthz/live HTTP/1.1", 405, b"only GET\n"),
        ("GET /broken HTTP/1.1", 503, b"internal error, see the log\n"),
        ("\xff", 400, b"bad request\n"),
        ("GET /" + "x" * 9000, 400, b"bad request\n"),
    ],
)
@on_loop
async def test_a_request_is_answered_and_the_connection_closed(request_line: str, status: int, body: bytes) -> None:
    async with serving(Told()) as server:
        await eventually(lambda: server.address.port)
        answer = await asked(server.address.port, request_line.encode("latin-1") + b"\r\nHost: x\r\n\r\n")
        head, _, found = answer.partition(b"\r\n\r\n")
        assert head.startswith(f"HTTP/1.1 {status} ".encode()) and found == body


@on_loop
async def test_a_taken_port_is_a_condition_until_it_is_free() -> None:
    told = Told()
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        async with serving(told, port):
            await eventually(lambda: "taken" in told.held)
            assert str(port) in told.held["taken"]
            stranger.close()
            await eventually(lambda: not told.held)
            assert b"alive" in await asked(port, b"GET /healthz/live HTTP/1.1\r\n\r\n")


@on_loop
async def test_silent_connections_beyond_the_bound_are_closed_and_others_are_served_after_them() -> None:
    async with serving(Told()) as server:
        await eventually(lambda: server.address.port)
        silent = [await asyncio.open_connection("127.0.0.1", server.address.port) for _ in range(MAX_CONNECTIONS)]
        assert await asked(server.address.port, b"") == b""
        for _, writer in silent:
            writer.close()

        async def served() -> bytes:
            return await asked(server.address.port, b"GET /healthz/live HTTP/1.1\r\n\r\n")

        while b"alive" not in await served():
            pass
