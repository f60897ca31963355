"""A few read-only pages over HTTP/1.1: metrics and health, for collectors and load balancers.

One request per connection, heads of 8 KiB at most, 32 connections at once, five seconds for everything. A port that is
taken is no reason to stop: it is tried again, and a condition says so meanwhile.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import structlog

from meshagent.model.address import HostPort
from meshagent.model.condition import ConditionSink

log = structlog.get_logger()

MAX_HEAD = 8 << 10
MAX_CONNECTIONS = 32
SECONDS = 5.0
RETRY_SECONDS = 5.0
_TEXT = "text/plain; charset=utf-8"
#: Prometheus' text format.
METRICS = "text/plain; version=0.0.4; charset=utf-8"
_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}


@dataclass(frozen=True, slots=True)
class Page:
    """What a path answers."""

    text: str | bytes
    status: int = 200
    kind: str = _TEXT


#: Path -> what makes its page now.
Pages = Mapping[str, Callable[[], Awaitable[Page]]]


class PageServer:
    """Serves ``pages`` at ``address``; ``run`` until cancelled. ``code`` is the condition of a port that is taken."""

    def __init__(
        self, address: HostPort, pages: Pages, conditions: ConditionSink, code: str, retry: float = RETRY_SECONDS
    ) -> None:
        self.address = address
        self._pages = pages
        self._conditions, self._code = conditions, code
        self._retry = retry
        self._open = 0

    async def run(self) -> None:
        """Listen, as soon as that is possible, for good."""
        while True:
            try:
                server = await asyncio.start_server(self._serve, self.address.host, self.address.port, limit=MAX_HEAD)
            except OSError as error:
                self._conditions.set(self._code, f"{self.address}: {error.strerror or error}")
                log.warning("pages-not-served", address=str(self.address), error=error.strerror or str(error))
                await asyncio.sleep(self._retry)
                continue
            self.address = HostPort(self.address.host, int(server.sockets[0].getsockname()[1]))
            self._conditions.clear(self._code)
            try:
                await server.serve_forever()
            finally:
                server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= MAX_CONNECTIONS:
                async with asyncio.timeout(SECONDS):
                    await self._answer(reader, writer)
        except (TimeoutError, OSError):
            pass  # whoever asked has gone, or is too slow
        finally:
            self._open -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        method, path = "", ""
        with contextlib.suppress(asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            head = await reader.readuntil(b"\r\n\r\n")
            method, target, _ = head.split(b"\r\n", 1)[0].decode("ascii").split(" ")
            path = target.partition("?")[0]
        page = await self._page(method, path)
        body = page.text.encode() if isinstance(page.text, str) else page.text
        lines = [
            f"HTTP/1.1 {page.status} {_REASONS.get(page.status, '')}",
            f"Content-Type: {page.kind}",
            f"Content-Length: {len(body)}",
            "Cache-Control: no-store",
            "X-Content-Type-Options: nosniff",
            "Connection: close",
        ]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + (b"" if method == "HEAD" else body))
        await writer.drain()

    async def _page(self, method: str, path: str) -> Page:
        if not method:
            return Page("bad request\n", 400)
        if method not in ("GET", "HEAD"):
            return Page("only GET\n", 405)
        make = self._pages.get(path)
        if make is None:
            return Page("".join(f"{known}\n" for known in self._pages), 404)
        try:
            return await make()
        except Exception:  # a page that can't be made must not look like a dead daemon
            log.exception("page-not-made", path=path)
            return Page("internal error, see the log\n", 503)


async def alive() -> Page:
    """``/healthz/live``: who answers has an event loop that turns."""
    return Page("alive\n")


def ready_page(reasons: list[str]) -> Page:
    """``/healthz/ready``: 200, or 503 with what stands in the way, a line each."""
    return Page("ready\n") if not reasons else Page("".join(f"{reason}\n" for reason in reasons), 503)
