"""Keeping a daemon small from its first import on; nothing here may import asyncio. See also ``resident.py``."""

import ctypes
import gc
import sys
from contextlib import suppress

#: glibc's M_ARENA_MAX (malloc.h): an arena per thread keeps what a thread once used.
_M_ARENA_MAX = -8
_ARENAS = 2


#: What the agent can do without. structlog loads rich where that is installed (3.5 MB). asyncio and hashlib load the
#: system's OpenSSL (5.2 MB), but gRPC and cryptography each bring a library of their own; SHA-2 has its builtin.
_UNUSED = ("rich", "_ssl", "_hashlib")


def stay_lean() -> None:
    """Call before the first import of asyncio and structlog. Commands that print tables or use ``ssl`` must not."""
    collect_not_yet()
    for name in _UNUSED:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # None: "can't be imported" (its contract)
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)


def collect_not_yet() -> None:
    """While a daemon starts everything is new and stays: to look through it again and again finds no garbage."""
    gc.disable()


def collect_from_now_on() -> None:
    """What is there stays, and is not looked through any more."""
    gc.collect()
    gc.freeze()
    gc.enable()


def collect_rarely() -> None:
    """As above, and for a server of a thousand connections not after every 700 objects: to look for garbage took
    a good part of what a returning fleet cost the hub. What has grown old then needs ``resident.collect_all``: a
    connection leaves some 15 objects in circles of asyncio's and gRPC's own."""
    collect_from_now_on()
    gc.set_threshold(20_000, 50, 50)
