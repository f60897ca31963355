"""Which other processes hold a lock on a file: for errors that name who is in the way.

Source: proc_locks(5), lines such as ``1: POSIX  ADVISORY  WRITE 1234 00:2d:8712 1073741825 1073741825``; the device's
numbers are hexadecimal. The kernel shows processes of this pid namespace only.
"""

import os
from collections.abc import Iterable
from pathlib import Path

_LOCKS = Path("/proc/locks")


def writers(paths: Iterable[Path]) -> tuple[str, ...]:
    """``name (pid N)`` of every other process that holds a write lock on one of ``paths``; empty when unknown."""
    try:
        lines = _LOCKS.read_text().splitlines()
    except OSError:
        return ()
    wanted = {file for path in paths if (file := _identity(path))}
    found = {int(words[4]) for words in map(str.split, lines) if _is_write(words) and words[5] in wanted}
    return tuple(f"{_name(pid)} (pid {pid})" for pid in sorted(found - {os.getpid()}))


def _is_write(words: list[str]) -> bool:
    return len(words) >= 6 and words[3] == "WRITE" and words[4].isdecimal()


def _identity(path: Path) -> str:
    try:
        seen = path.stat()
    except OSError:
        return ""
    return f"{os.major(seen.st_dev):02x}:{os.minor(seen.st_dev):02x}:{seen.st_ino}"


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "a process"
