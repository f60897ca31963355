"""Who uses legacy iptables: its programs hold xtables.lock while they work, and the kernel tells when a file is opened.

Legacy tables announce nothing, neither a change nor who made it. But iptables 1.6 and newer open /run/xtables.lock and
lock it (flock) for as long as they read and write, and inotify tells that at once without any privilege (fanotify would
tell the process too, but wants CAP_SYS_ADMIN). /proc/locks names the process that holds it, or waits for it. Programs
that write tables without the lock (libiptc, iptables before 1.6) aren't seen here.
"""

import ctypes
import os
import struct
import time
from dataclasses import dataclass
from pathlib import Path

LOCK = Path("/run/xtables.lock")
_LOCKS = Path("/proc/locks")

# inotify(7)
_IN_OPEN, _IN_CLOSE, _IN_IGNORED, _IN_DELETE_SELF = 0x20, 0x18, 0x8000, 0x400
_EVENT = struct.Struct("=iIII")

#: A program locks the file some microseconds after it has opened it.
_LOOKS, _BETWEEN_SECONDS = 8, 0.0003


@dataclass(frozen=True, slots=True)
class User:
    """A program that held, or waited for, the lock; ``name`` says who had started it, where that is known."""

    pid: int
    name: str


class LockWatch:
    """Hears of every opening of xtables.lock; never blocks for more than 3 ms. ``fileno`` turns readable."""

    def __init__(self, path: Path = LOCK) -> None:
        self._path, self._watching = path, False
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "inotify")

    def fileno(self) -> int:
        return int(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)

    def follow(self) -> User | None:
        """Watch the file that is there now, and forget what has happened so far: that was our own doing.

        Who uses it now is somebody else: our own programs have ended.
        """
        self._drain()
        if not self._watching:
            mask = _IN_OPEN | _IN_CLOSE | _IN_DELETE_SELF
            self._watching = self._libc.inotify_add_watch(self._descriptor, os.fsencode(self._path), mask) >= 0
        return self._user()

    def read(self) -> tuple[bool, User | None]:
        """Whether anybody opened the lock since, and who uses it now."""
        opened, closed = self._drain()
        found = None
        for _ in range(_LOOKS if opened > closed else 1):
            if not opened or (found := self._user()) is not None:
                break
            time.sleep(_BETWEEN_SECONDS)
        return bool(opened), found

    def _drain(self) -> tuple[int, int]:
        """How often it was opened and closed."""
        opened = closed = 0
        try:
            while data := os.read(self._descriptor, 1 << 16):
                position = 0
                while position < len(data):
                    _, mask, _, length = _EVENT.unpack_from(data, position)
                    position += _EVENT.size + length
                    opened += bool(mask & _IN_OPEN)
                    closed += bool(mask & _IN_CLOSE)
                    if mask & (_IN_IGNORED | _IN_DELETE_SELF):
                        self._watching = False
        except BlockingIOError:
            pass
        return opened, closed

    def _user(self) -> User | None:
        try:
            known = self._path.stat()
            lines = _LOCKS.read_text().splitlines()
        except OSError:
            return None
        where = f"{os.major(known.st_dev):02x}:{os.minor(known.st_dev):02x}:{known.st_ino}"
        for pid in holders(lines, where):
            parent = _parent(pid)
            if name := _name(pid):
                by = _name(parent) if parent > 1 else ""
                return User(pid, f"{name} by {by}" if by else name)
        return None


def holders(lines: list[str], where: str) -> list[int]:
    """Processes with a lock on the file ``where`` (major:minor:inode), or waiting for one; see proc_locks(5)."""
    found = []
    for line in lines:
        words = [word for word in line.split() if word != "->"]
        if len(words) > 5 and words[1] == "FLOCK" and words[5] == where and words[4].isdigit():
            found.append(int(words[4]))
    return [pid for pid in found if pid > 0]


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return ""


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0
