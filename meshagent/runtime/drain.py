"""Letting what is under way finish, up to a deadline, and counting what didn't."""

import asyncio
import contextlib
from collections.abc import Iterator


class Drain:
    """Counts pieces of work under way. After ``begin`` no new ones are let in; ``finish`` waits for the rest."""

    def __init__(self) -> None:
        self._under_way = 0
        self._draining = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def draining(self) -> bool:
        return self._draining.is_set()

    @property
    def under_way(self) -> int:
        return self._under_way

    @contextlib.contextmanager
    def work(self) -> Iterator[bool]:
        """One piece of work; yields False when draining has begun: then refuse it politely."""
        if self.draining:
            yield False
            return
        self._under_way += 1
        self._idle.clear()
        try:
            yield True
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    def begin(self) -> None:
        """Let nothing new in."""
        self._draining.set()

    async def begun(self) -> None:
        """Return when draining begins: long work watches this to end by itself."""
        await self._draining.wait()

    async def finish(self, deadline: float) -> int:
        """``begin``, then wait up to ``deadline`` seconds; the number of pieces still under way (0: all done)."""
        self.begin()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline):
                await self._idle.wait()
        return self._under_way
