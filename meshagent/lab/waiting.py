"""Waiting for something to become true, with a deadline and a reason when it doesn't."""

import os
import time
from collections.abc import Callable
from typing import TypeVar

from meshagent.model.errors import MeshagentError

T = TypeVar("T")


class NotInTimeError(MeshagentError):
    """A condition did not become true in time; the message says which one and what was seen last."""


def patience() -> float:
    """By how much every deadline of a lab is longer than on an idle machine (``MESHAGENT_LAB_PATIENCE``; 1 without).

    A deadline only tells a hang from an answer. Where other programs need the machine too, an answer takes longer.
    """
    try:
        return max(1.0, float(os.environ.get("MESHAGENT_LAB_PATIENCE", "1")))
    except ValueError:
        return 1.0


def wait_until(condition: Callable[[], T], timeout: float = 10.0, what: str = "", interval: float = 0.02) -> T:
    """Call ``condition`` until it returns something true, and return that.

    ``OSError`` and ``MeshagentError`` count as not yet. Raises ``NotInTimeError`` after ``timeout`` seconds, times
    ``patience()``.
    """
    timeout *= patience()
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


def stays_false(condition: Callable[[], object], seconds: float, interval: float = 0.02) -> bool:
    """Whether ``condition`` is false at every look for that long: what must not happen, didn't.

    ``OSError`` and ``MeshagentError`` count as false.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if condition():
                return False
        except (OSError, MeshagentError):
            pass
        time.sleep(interval)
    return True
