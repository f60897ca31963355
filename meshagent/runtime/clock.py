"""Time handed in: decisions take a clock, so that tests can make it jump."""

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """``monotonic`` in seconds that never jump, ``now`` as the wall says (aware UTC)."""

    def monotonic(self) -> float: ...

    def now(self) -> datetime: ...


def boot_seconds() -> float:
    """Seconds since this machine booted, also those it slept: for ages that are kept over a restart of a program."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class SystemClock:
    """The machine's own clocks."""

    def monotonic(self) -> float:
        return time.monotonic()

    def now(self) -> datetime:
        return datetime.now(UTC)
