"""Waiting for something to become true, with a deadline and a reason when it doesn't."""

import time
from collections.abc import Callable
from typing import TypeVar

from meshagent.model.errors import MeshagentError

T = TypeVar("T")


class NotInTimeError(MeshagentError):
    """A condition did not become true in time; the message says which one and what was seen last."""


def wait_until(condition: Callable[[], T], timeout: float = 10.0, what: str = "", interval: float = 0.02) -> T:
    """Call ``condition`` until it returns something true, and return that.

    ``OSError`` and ``MeshagentError`` count as not yet. Raises ``NotInTimeError`` after ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    last = ""
    while True:
        try:
            result = condition()
            if result:
                return result
            last = f"last seen: {result!r}"
        except (OSError, MeshagentError) as error:
            last = f"last error: {error}"
        if time.monotonic() >= deadline:
            name = what or getattr(condition, "__name__", "the condition")
            raise NotInTimeError("not-in-time", f"{name} did not come true within {timeout:g} s ({last[:500]})")
        time.sleep(interval)
