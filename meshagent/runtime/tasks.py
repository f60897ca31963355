"""Named asyncio tasks that are meant to run for good: one that fails is logged and started again, alone.

The parts of a daemon must not take each other down. A part that returns is done; a part that raises comes back after
a backoff; a part that ran well for a while starts its backoff anew.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

from meshagent.runtime.backoff import Backoff
from meshagent.runtime.clock import Clock, SystemClock

#: A part that ran this many seconds before it failed is no crash loop.
_RAN_WELL = 60.0


class OnFailure(Protocol):
    """Told of every unexpected failure: the task's name, what it raised, seconds until it runs again."""

    def __call__(self, name: str, error: Exception, retry_in: float) -> None: ...


class Supervisor:
    """Runs named tasks until it is closed; use as ``async with``.

    ``on_failure`` is called for each failure (logging is the caller's: this package knows no logger).
    """

    def __init__(
        self,
        on_failure: OnFailure,
        *,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        first: float = 0.1,
        limit: float = 30.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._on_failure = on_failure
        self._clock = clock or SystemClock()
        self._rng = rng or random.SystemRandom()
        self._first, self._limit, self._sleep = first, limit, sleep
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run ``work()`` under ``name`` from now on; a running task of that name is an error of the program."""
        if name in self._tasks and not self._tasks[name].done():
            raise RuntimeError(f"task {name} already runs")
        self._tasks[name] = asyncio.create_task(self._keep_running(name, work), name=name)

    def running(self) -> list[str]:
        """Names of the tasks that have not ended, in the order they were started."""
        return [name for name, task in self._tasks.items() if not task.done()]

    async def stop(self, name: str) -> None:
        """Cancel one task and wait for its end; harmless when it isn't there."""
        task = self._tasks.pop(name, None)
        if task is not None:
            task.cancel()
            await asyncio.wait({task})  # its failures were reported when they happened

    async def close(self) -> None:
        """Cancel all tasks, the last started first, and wait for each."""
        for name in reversed(list(self._tasks)):
            await self.stop(name)

    async def _keep_running(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        backoff = Backoff(first=self._first, limit=self._limit, rng=self._rng)
        while True:
            started = self._clock.monotonic()
            try:
                return await work()
            except Exception as error:
                if self._clock.monotonic() - started >= _RAN_WELL:
                    backoff.reset()
                wait = backoff.next()
                self._on_failure(name, error, wait)
            await self._sleep(wait)

    async def __aenter__(self) -> "Supervisor":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
