"""Keeps systemd informed from an event loop: the loop itself feeds the watchdog, so one that hangs is noticed."""

import asyncio
import os
from collections.abc import Callable

from meshagent.machine.notify import notify, watchdog_interval

#: The status line may be this old.
LOOK_SECONDS = 2.0


async def keep_notified(status: Callable[[], str], look: float = LOOK_SECONDS) -> None:
    """Until cancelled: ``WATCHDOG=1`` at half of what systemd allows, ``STATUS=`` when the line changes.

    Returns at once where no systemd listens.
    """
    if not os.environ.get("NOTIFY_SOCKET"):
        return
    interval, loop = watchdog_interval(), asyncio.get_running_loop()
    due, said = 0.0, ""
    while True:
        states = []
        if interval is not None and loop.time() >= due:
            due = loop.time() + interval
            states.append("WATCHDOG=1")
        text = status()
        if text != said:
            states.append(f"STATUS={text}")
        if states and notify(*states):
            said = text
        await asyncio.sleep(look if interval is None else max(0.0, min(look, due - loop.time())))
