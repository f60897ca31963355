"""Control groups of systemd units: where they are, and when one comes or goes.

A unit's group lies in the v2 tree below a chain of slices; groups below a service or scope (containers, user managers)
are somebody else's, so a container's ``ssh.service`` is never taken for this host's.
"""

import asyncio
import contextlib
import ctypes
import os
from collections.abc import Collection, Iterator
from pathlib import Path

from meshagent.model.cgroup import Cgroup
from meshagent.model.errors import MeshagentError

#: Where nft looks: `socket cgroupv2 level N "path"` is relative to this, also on hybrid trees (unified/…).
NFT_ROOT = Path("/sys/fs/cgroup")
_MAX_DEPTH = 16

# inotify(7)
_IN_CREATE, _IN_DELETE, _IN_MOVED, _IN_ONLYDIR = 0x100, 0x200, 0xC0, 0x01000000


def tree(mounts: Path = Path("/proc/self/mounts")) -> Path | None:
    """The root of the v2 tree below /sys/fs/cgroup; None where there is none that nft could use."""
    with contextlib.suppress(OSError):
        for line in mounts.read_text(errors="replace").splitlines():
            words = line.split()
            if len(words) > 2 and words[2] == "cgroup2" and Path(words[1]).is_relative_to(NFT_ROOT):
                return Path(words[1])
    return None


def find(units: Collection[str], root: Path | None = None) -> tuple[Cgroup, ...]:
    """The groups of those units that run now, sorted. Empty where there is no v2 tree."""
    root = root or tree()
    return () if root is None else tuple(sorted(_found(frozenset(units), root)))


def _found(units: frozenset[str], root: Path) -> Iterator[Cgroup]:
    for directory in _slices(root):
        for entry in _directories(directory):
            if entry.name in units:
                with contextlib.suppress(OSError):  # it may go while we look
                    path = Path(entry.path)
                    level = len(path.relative_to(root).parts)
                    yield Cgroup(entry.name, str(path.relative_to(NFT_ROOT)), level, path.stat().st_ino)


def _slices(root: Path, depth: int = 0) -> Iterator[Path]:
    """The root and every slice below it."""
    yield root
    if depth < _MAX_DEPTH:
        for entry in _directories(root):
            if entry.name.endswith(".slice"):
                yield from _slices(Path(entry.path), depth + 1)


def _directories(directory: Path) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(directory) as entries:
            return [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


class Watch:
    """Tells when a unit's group was made or removed. Use on a running loop; ``close`` when done."""

    def __init__(self, root: Path | None = None) -> None:
        self._root = root or tree()
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            raise MeshagentError("no-inotify", f"inotify: {os.strerror(ctypes.get_errno())}")
        self._changed = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._descriptor, self._drain)
        self._follow()

    async def changed(self) -> None:
        """Wait for the next change."""
        await self._changed.wait()
        self._changed.clear()
        self._follow()  # a slice may be new

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)

    def _follow(self) -> None:
        """Watching a directory twice is one watch; removed ones end by themselves."""
        mask = _IN_CREATE | _IN_DELETE | _IN_MOVED | _IN_ONLYDIR
        for directory in _slices(self._root) if self._root else ():
            self._libc.inotify_add_watch(self._descriptor, os.fsencode(directory), mask)

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._descriptor, 64 << 10):
                self._changed.set()
