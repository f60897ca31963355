"""Orphans of lab hosts: programs that outlived who started them become children of the lab, which buries them.

PID 1 of a container often reaps nobody, and a zombie looks alive to whoever checks only that its pid exists. Children
that something in this process waits for must be left to it: only a zombie that has lain for a second, was once seen
in a namespace of ours (a zombie no longer shows which), and is not one of the lab's own programs is reaped.
"""

import ctypes
import os
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path

from meshagent.machine import process

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_GRACE = 1.0


_adopters = 0


def adopt_orphans(on: bool) -> None:
    """Make this process the one that orphaned descendants fall to (prctl(2)), until each call was taken back."""
    global _adopters
    _adopters += 1 if on else -1
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, int(_adopters > 0), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl: {os.strerror(number)}")


class Reaper:
    """Buries orphans in a thread of its own; ``nets``: namespaces of the lab, ``own``: pids others wait for."""

    def __init__(self, nets: Callable[[], Collection[int]], own: Callable[[], Collection[int]]) -> None:
        self._nets = nets
        self._own = own
        self._seen: dict[int, float] = {}  # orphans of ours -> when first seen dead (0 = alive)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lab reaper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread and bury whoever is dead, without grace."""
        self._stop.set()
        self._thread.join()
        self._look(grace=0.0)

    def _run(self) -> None:
        while not self._stop.wait(0.25):
            self._look(_GRACE)

    def _look(self, grace: float) -> None:
        nets, own, now = self._nets(), self._own(), time.monotonic()
        for pid in _children():
            if pid in own:
                continue
            if process.namespace(pid) in nets:
                self._seen[pid] = 0.0
            elif pid in self._seen and process.start_time(pid) is None:
                self._seen[pid] = self._seen[pid] or now
                if now - self._seen[pid] >= grace:
                    self._bury(pid)

    def _bury(self, pid: int) -> None:
        del self._seen[pid]
        try:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            return


def _children() -> list[int]:
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        try:
            found += [int(pid) for pid in (task / "children").read_text().split()]
        except OSError:
            continue  # the thread ended meanwhile
    return found
