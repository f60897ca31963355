"""Programs that live at another time: the wall clock shifted, the monotonic one and every sleep as they are.

``wrong_clock`` is wrong from the start, a ``JumpingClock`` whenever the test says so.

A preloaded library of a few lines answers for the wall clock. libfaketime 0.9.10 won't do: with the monotonic clock
left alone it shifts the deadlines of that clock's sleeps all the same, and every ``time.sleep`` fails (EINVAL).
"""

import atexit
import functools
import mmap
import os
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

#: Programs ask the C library; the addresses of its own functions are looked up behind ours (dlsym(3), RTLD_NEXT).
_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static volatile long *shared(void) {
    static volatile long *found;
    static int looked;
    const char *path = getenv("WRONG_CLOCK_FILE");
    if (!looked && path) {
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        void *mapped = fd < 0 ? MAP_FAILED : mmap(0, sizeof(long), PROT_READ, MAP_SHARED, fd, 0);
        if (fd >= 0) close(fd);
        if (mapped != MAP_FAILED) found = mapped;
    }
    looked = 1;
    return found;
}
static long offset(void) {
    const char *s = getenv("WRONG_CLOCK_SECONDS");
    volatile long *jumped = shared();
    return jumped ? *jumped : s ? atol(s) : 0;
}
int clock_gettime(clockid_t id, struct timespec *ts) {
    static int (*next)(clockid_t, struct timespec *);
    if (!next) next = dlsym(RTLD_NEXT, "clock_gettime");
    int result = next(id, ts);
    if (result == 0 && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) ts->tv_sec += offset();
    return result;
}
time_t time(time_t *out) {
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    if (out) *out = ts.tv_sec;
    return ts.tv_sec;
}
int gettimeofday(struct timeval *restrict tv, void *restrict zone) {
    struct timespec ts;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &ts);
    if (tv) { tv->tv_sec = ts.tv_sec; tv->tv_usec = ts.tv_nsec / 1000; }
    return 0;
}
"""


def wrong_clock(offset: str) -> dict[str, str]:
    """Environment of a program whose wall clock is off, e.g. by ``+1d`` or ``-1h``."""
    seconds = int(offset[:-1]) * _SECONDS[offset[-1]]
    return {"LD_PRELOAD": str(_library()), "WRONG_CLOCK_SECONDS": str(seconds)}


class JumpingClock:
    """The wall clock of programs started with ``environment``; ``jump`` moves it while they run."""

    def __init__(self) -> None:
        handle, self._path = tempfile.mkstemp(prefix="clock-")
        os.write(handle, bytes(struct.calcsize("l")))
        self._shared = mmap.mmap(handle, struct.calcsize("l"))
        os.close(handle)
        self.environment = {"LD_PRELOAD": str(_library()), "WRONG_CLOCK_FILE": self._path}

    def jump(self, seconds: int) -> None:
        """From now on so many seconds off the true time."""
        self._shared[:] = struct.pack("l", seconds)

    def __enter__(self) -> "JumpingClock":
        return self

    def __exit__(self, *_: object) -> None:
        self._shared.close()
        Path(self._path).unlink()


@functools.cache
def _library() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="clock."))
    (directory / "clock.c").write_text(_SOURCE)
    library = directory / "clock.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, directory / "clock.c", "-ldl"], check=True)
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return library
