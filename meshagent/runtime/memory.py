"""Keeping a daemon small."""

import ctypes
import sys
from contextlib import suppress

#: glibc's M_ARENA_MAX (malloc.h): an arena per thread keeps what a thread once used.
_M_ARENA_MAX = -8
_ARENAS = 2


def stay_lean() -> None:
    """Call before the first import of structlog: it loads rich where that is installed, 4 MB that no daemon uses.

    Commands that print tables must not call it.
    """
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]  # None: "can't be imported" (sys.modules' contract)
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)
