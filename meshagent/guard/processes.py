"""Watching a process that isn't our child: a pidfd, opened before the start time is compared.

A pid alone proves nothing, the kernel reuses it. The pidfd becomes readable when the process ends (pidfd_open(2)).
"""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Pidfd:
    """One open pidfd."""

    descriptor: int

    def close(self) -> None:
        os.close(self.descriptor)


def start_time(pid: int) -> int | None:
    """Clock ticks after boot at which ``pid`` started (proc(5), stat field 22); None for a dead process or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold spaces and ')'
    return None if fields[0] in ("Z", "X") else int(fields[19])


def open_pidfd(pid: int, started: int) -> Pidfd | None:
    """Turns readable when exactly that process ends; None when it is gone already."""
    try:
        opened = Pidfd(os.pidfd_open(pid))
    except OSError:
        return None
    if start_time(pid) != started:
        opened.close()
        return None
    return opened
