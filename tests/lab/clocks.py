"""Programs that live at another time: the wall clock shifted by libfaketime, the monotonic one as it is."""

import functools
import subprocess


def wrong_clock(offset: str) -> dict[str, str]:
    """Environment of a program whose wall clock is off, e.g. by ``+1d`` or ``-1d`` (faketime(1)).

    Set by hand, because the ``faketime`` program itself stays in between and keeps signals from what it started.
    """
    return {
        "LD_PRELOAD": _library(),
        "FAKETIME": offset,
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # a clock that was set wrong leaves it alone, too
        "FAKETIME_DISABLE_SHM": "1",  # nothing in /dev/shm that a killed program would leave
        "NO_FAKE_STAT": "1",
    }


@functools.cache
def _library() -> str:
    argv = ["faketime", "-f", "+0", "printenv", "LD_PRELOAD"]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
