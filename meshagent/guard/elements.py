"""Sets of mesh addresses as bytes: sorted keys of one width, put together. Pure.

A key is the packed address and two bytes of port, so 5,000 of them are 30 KB that are sent, kept, compared and hashed
in microseconds, and nothing but an address and a port can be in them. The set's name ends with the family: 4 or 6.
"""

import re
import socket
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from meshagent.guard.wire import RequestError

_NAME = re.compile(r"[a-z_]{1,60}[46]", re.ASCII)
_WIDTHS = {"4": 4 + 2, "6": 16 + 2}
#: From here on building the set anew is cheaper than finding every place: each key found costs 3 µs.
_MANY = 64


@dataclass(frozen=True, slots=True)
class Change:
    """Keys that come and go, in any order."""

    add: bytes = b""
    delete: bytes = b""


def width(name: str) -> int:
    """Bytes of one key of the set with this name."""
    return _WIDTHS[name[-1]]


def require(name: str, packed: bytes) -> None:
    """Whole keys of a set with a possible name; else ``RequestError``."""
    if not _NAME.fullmatch(name):
        raise RequestError("bad-request", f"{name[:40]!r} isn't the name of a set of addresses")
    if len(packed) % width(name):
        raise RequestError("bad-request", f"{name} holds part of a key")


def keys(name: str, packed: bytes) -> list[bytes]:
    """One entry for each key."""
    size = width(name)
    return [packed[start : start + size] for start in range(0, len(packed), size)]


def texts(name: str, packed: bytes) -> list[str]:
    """``10.0.0.1 . 80`` for each key, as nft writes it."""
    if name.endswith("4"):
        return [f"{key[0]}.{key[1]}.{key[2]}.{key[3]} . {key[4] << 8 | key[5]}" for key in keys(name, packed)]
    return [f"{socket.inet_ntop(socket.AF_INET6, key[:16])} . {key[16] << 8 | key[17]}" for key in keys(name, packed)]


def merged(name: str, packed: bytes, change: Change) -> bytes:
    """The set after a change. Deleting what isn't there and adding what is changes nothing."""
    gone, come = keys(name, change.delete), keys(name, change.add)
    if len(gone) + len(come) > _MANY:
        return b"".join(sorted((set(keys(name, packed)) - set(gone)) | set(come)))
    for key in gone:
        start, there = _find(name, packed, key)
        packed = packed[:start] + packed[start + len(key) :] if there else packed
    for key in come:
        start, there = _find(name, packed, key)
        packed = packed if there else packed[:start] + key + packed[start:]
    return packed


def difference(name: str, before: bytes, after: bytes) -> Change:
    """What leads from one set to another."""
    if before == after:
        return Change()
    old, new = set(keys(name, before)), set(keys(name, after))
    return Change(add=b"".join(sorted(new - old)), delete=b"".join(sorted(old - new)))


def _find(name: str, packed: bytes, key: bytes) -> tuple[int, bool]:
    size = width(name)
    place = bisect_left(range(len(packed) // size), key, key=lambda n: packed[n * size : (n + 1) * size])
    return place * size, packed[place * size : (place + 1) * size] == key


def lines(table: str, verb: str, name: str, packed: bytes) -> str:
    """One nft command, or nothing for no keys."""
    return f"{verb} element inet {table} {name} {{ {', '.join(texts(name, packed))} }}\n" if packed else ""


def change_lines(table: str, changes: Mapping[str, Change]) -> str:
    """What goes first, what comes second: an address may do both."""
    found: Iterable[str] = (
        lines(table, "delete", name, change.delete) + lines(table, "add", name, change.add)
        for name, change in changes.items()
    )
    return "".join(found)
