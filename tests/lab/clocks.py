"""Programs that live at another time: the wall clock shifted, the monotonic one and every sleep as they are.

A preloaded library of a few lines answers for the wall clock. libfaketime 0.9.10 won't do: with the monotonic clock
left alone it shifts the deadlines of that clock's sleeps all the same, and every ``time.sleep`` fails (EINVAL).
"""

import atexit
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

#: Programs ask the C library; the addresses of its own functions are looked up behind ours (dlsym(3), RTLD_NEXT).
_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
static long offset(void) { const char *s = getenv("WRONG_CLOCK_SECONDS"); return s ? atol(s) : 0; }
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


@functools.cache
def _library() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="clock."))
    (directory / "clock.c").write_text(_SOURCE)
    library = directory / "clock.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, directory / "clock.c", "-ldl"], check=True)
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return library
