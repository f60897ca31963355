"""Two connections joined: bytes flow both ways, each side at the other's pace, and end together."""

import asyncio
from collections.abc import Callable


class Pipe(asyncio.Protocol):
    """One end of a connection; what it receives is written to the other end, at the other end's pace."""

    def __init__(self, on_lost: Callable[[], None] = lambda: None) -> None:
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._other: asyncio.Transport | None = None

    def connect(self, other: "Pipe") -> None:
        """Join two ends that are both connected; data begins to flow."""
        assert self._transport and other._transport
        self._other, other._other = other._transport, self._transport
        if self._transport.is_closing() or other._transport.is_closing():
            self.abort()
            return
        self._transport.resume_reading()
        other._transport.resume_reading()

    def abort(self) -> None:
        """End both ends at once."""
        for transport in (self._transport, self._other):
            if transport is not None:
                transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.pause_reading()  # until the other end is there

    def data_received(self, data: bytes) -> None:
        if self._other is not None:
            self._other.write(data)

    def pause_writing(self) -> None:
        if self._other is not None and not self._other.is_closing():
            self._other.pause_reading()

    def resume_writing(self) -> None:
        if self._other is not None and not self._other.is_closing():
            self._other.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._other is not None:
            self._other.close()
        self._on_lost()
