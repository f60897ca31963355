"""A value that others can watch: how the parts of agent and hub hear of each other's news."""

import asyncio
import operator
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Latest(Generic[T]):
    """Holds the newest value; watchers see the newest, never a queue of old ones (they may miss intermediates).

    Not thread-safe: set and watch on one event loop. ``same`` tells whether a new value is no news: equality, or for
    big values whose equal ones are shared, ``operator.is_``.
    """

    def __init__(self, value: T, same: Callable[[Any, Any], Any] = operator.eq) -> None:
        self._value = value
        self._same = same
        self._version = 0
        self._changed = asyncio.Event()

    @property
    def value(self) -> T:
        return self._value

    @property
    def version(self) -> int:
        """Counts ``set`` calls that changed the value."""
        return self._version

    def set(self, value: T) -> None:
        """Publish ``value``; setting an equal value wakes nobody."""
        if self._same(value, self._value):
            return
        self._value = value
        self._version += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def newer(self, version: int) -> T:
        """Wait until the version differs from ``version``; return the newest value."""
        while self._version == version:
            await self._changed.wait()
        return self._value

    async def watch(self) -> AsyncIterator[T]:
        """The current value at once, then every newest value after a change."""
        version = self._version
        yield self._value
        while True:
            await self.newer(version)
            version = self._version
            yield self._value


async def any_newer(values: Sequence[Latest[Any]], versions: Sequence[int], seconds: float | None = None) -> None:
    """Wait until one of ``values`` is newer than its entry of ``versions``, at most ``seconds`` (None: as long as it
    takes)."""
    waits = [asyncio.ensure_future(value.newer(version)) for value, version in zip(values, versions, strict=True)]
    try:
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


def remembered(values: Sequence[Latest[Any]], compute: Callable[[], T]) -> Callable[[], T]:
    """``compute``, done again only when one of ``values`` has changed since; what it raises is not remembered."""
    known: list[tuple[list[int], T]] = []

    def ask() -> T:
        versions = [value.version for value in values]
        if not known or known[0][0] != versions:
            known[:] = [(versions, compute())]
        return known[0][1]

    return ask
