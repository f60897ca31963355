"""Waiting for a condition instead of for time."""

import asyncio
from collections.abc import Awaitable, Callable


async def eventually(check: Callable[[], object], seconds: float = 30.0) -> None:
    """Until ``check`` is true; fails after ``seconds``."""
    async with asyncio.timeout(seconds):
        while not check():  # noqa: ASYNC110 - anything may be asked for, without an event of its own
            await asyncio.sleep(0.005)


async def eventually_async(check: Callable[[], Awaitable[object]], seconds: float = 30.0) -> None:
    """``eventually`` for a check that waits itself."""
    async with asyncio.timeout(seconds):
        while not await check():  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.005)
