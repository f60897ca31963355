"""Keeping a daemon small once it runs: what only its start needed goes."""

import asyncio
import ctypes
import gc
import itertools
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from meshagent.runtime.memory import collect_from_now_on

#: madvise(2): the pages leave this process; of a file that was never written to they are read again when touched.
_MADV_DONTNEED = 4

#: First address and the one after the last.
Range = tuple[int, int]

#: Seconds from one time to the next: when a usual start is over, when a long one is, then for good (a big push).
_WAITS = (2.0, 8.0)
_AGAIN_SECONDS = 15.0

COLLECT_SECONDS = 300.0


async def forget_start() -> None:
    """Give back, again and again until cancelled, the code and the heap that only the start needed.

    Of 22 MB of libraries that an agent has touched when it serves it touches a quarter again (Python 3.11, grpcio 1.85;
    3 ms of CPU time each time). What 1,000 services came in is 4 MB of free heap.
    """
    known = drop_code(frozenset())
    for seconds in itertools.chain(_WAITS, itertools.repeat(_AGAIN_SECONDS)):
        await asyncio.sleep(seconds)
        if not gc.isenabled():
            collect_from_now_on()
        known = drop_code(known)
        trim_heap()


async def collect_all(seconds: float = COLLECT_SECONDS) -> None:
    """Look through everything for garbage, again and again until cancelled; for users of ``memory.collect_rarely``."""
    while True:
        await asyncio.sleep(seconds)
        gc.collect()
        trim_heap()


def drop_code(known: frozenset[Range]) -> frozenset[Range]:
    """Let go of all pages of code and constants; what is used comes back page by page from the kernel's cache.

    Only mappings of files that nobody may write to and nobody has written to, not even the loader, so nothing is lost;
    and only those that a call before has seen already (``known``, what it returned): a library that another thread
    loads right now is one such mapping for some microseconds, and its data lies there a moment later.
    """
    with suppress(OSError, AttributeError):
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
        seen = frozenset(_untouched(Path("/proc/self/smaps").read_text()))
        for start, end in seen & known:
            madvise(start, end - start, _MADV_DONTNEED)
        return seen
    return frozenset()


def trim_heap() -> None:
    """Let go of free pages of malloc's heap (malloc_trim(3)), also of those in the middle, which it keeps by itself."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))


def _untouched(smaps: str) -> Iterator[Range]:
    """Address ranges of file mappings without a page of this process's own (proc(5), smaps).

    A library's constants that the loader has filled with addresses are read-only, too, and must stay.
    """
    mapping: Range | None = None
    own = 0
    for line in (*smaps.splitlines(), "0-0 end"):
        fields = line.split(maxsplit=5)
        if not fields[0].endswith(":"):
            if mapping is not None and own == 0:
                yield mapping
            start, _, end = fields[0].partition("-")
            whole = len(fields) == 6 and fields[1] in ("r-xp", "r--p") and fields[5].startswith("/")
            mapping, own = (int(start, 16), int(end, 16)) if whole else None, 0
        elif fields[0] in ("Anonymous:", "Swap:"):
            own += int(fields[1])
