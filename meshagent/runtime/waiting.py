"""Waiting for something that nobody announces."""

import asyncio
from collections.abc import Callable

from meshagent.model.errors import MeshagentError


async def until(condition: Callable[[], object], seconds: float, what: str, interval: float = 0.02) -> None:
    """Return when ``condition()`` holds; raises ``MeshagentError`` after ``seconds``."""
    try:
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110  # nobody announces it: that is what this is for
                await asyncio.sleep(interval)
    except TimeoutError:
        raise MeshagentError("not-in-time", f"waited {seconds:g} s for {what} in vain") from None
