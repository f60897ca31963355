"""Which names of the mesh the programs of this host asked for lately, and how often. Pure: no socket, no clock.

For whoever wants to leave: a program that asks now and then, and has no connection open right now, is seen here only.
Names that don't exist are not counted, so it can't grow beyond ``MOST`` names that the mesh itself has.
"""

from collections.abc import Container
from dataclasses import dataclass

#: Seconds: who asked before that may be gone. A count begins anew after so long a silence.
LATELY = 600.0
MOST = 512


@dataclass(frozen=True, slots=True)
class AskedName:
    """``times`` asked without a pause of ``LATELY``, the last time ``seconds_ago``."""

    name: str
    times: int
    seconds_ago: float


class RecentNames:
    """``note`` is on the way of every answer: a slice and a dictionary entry."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[int, float]] = {}

    def note(self, query: bytes, hosts: Container[bytes], now: float) -> None:
        """A query that was answered; ``hosts``: names of the mesh that have addresses (wire form, lower case)."""
        name = query[12 : query.find(b"\0", 12) + 1].lower()
        times, last = self._known.get(name, (0, now))
        if not times and (name not in hosts or not self._room(now)):
            return
        self._known[name] = (times + 1 if now - last <= LATELY else 1), now

    def lately(self, now: float) -> tuple[AskedName, ...]:
        """Those of the last ``LATELY`` seconds, the most asked first."""
        self._forget(now)
        found = (AskedName(_text(name), times, now - last) for name, (times, last) in self._known.items())
        return tuple(sorted(found, key=lambda asked: (-asked.times, asked.name)))

    def _room(self, now: float) -> bool:
        if len(self._known) >= MOST:
            self._forget(now)
        return len(self._known) < MOST

    def _forget(self, now: float) -> None:
        self._known = {name: seen for name, seen in self._known.items() if now - seen[1] <= LATELY}


def _text(wire: bytes) -> str:
    labels, at = [], 0
    while at < len(wire) and wire[at]:
        labels.append(wire[at + 1 : at + 1 + wire[at]].decode("ascii", errors="replace"))
        at += 1 + wire[at]
    return ".".join(labels)
