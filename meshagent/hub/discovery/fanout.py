"""One change of the mesh, many streams: build once, then hand each host its snapshot.

Streams of one host share one ``Latest[Snapshot]``; setting it wakes only those for whom something changed. While a
build runs further changes pile up in the registry's ``Latest`` and are built together.
"""

import asyncio
import operator
from dataclasses import dataclass, field

import structlog

from meshagent.hub.snapshot.build import Builder
from meshagent.hub.state import MeshState
from meshagent.protocol.entry import Snapshot
from meshagent.runtime.latest import Latest

log = structlog.get_logger()

#: Hosts served between two pauses, so that a mesh of thousands doesn't hold up the event loop.
_BATCH = 100


@dataclass(slots=True)
class Feed:
    """What one host is told. ``removed`` turns true when the mesh's state no longer holds the host."""

    snapshot: Latest[Snapshot]
    removed: Latest[bool] = field(default_factory=lambda: Latest(False))
    streams: int = 0


class Fanout:
    """Snapshots of all hosts that have a stream open. ``run`` follows the state until cancelled."""

    def __init__(self, state: Latest[MeshState]) -> None:
        self._state = state
        self._builder = Builder()
        self._builder.update(state.value)
        self._feeds: dict[str, Feed] = {}
        self._untold: set[str] = set()  # hosts for which something may have changed since ``run`` looked

    def open(self, host_name: str) -> Feed:
        """The host's feed, filled with what is known now; pair with ``close``."""
        self._follow()
        feed = self._feeds.get(host_name)
        if feed is None:
            # the builder gives the same object while nothing changed: comparing two whole ones is 1,000 times dearer
            feed = self._feeds[host_name] = Feed(Latest(self._builder.snapshot(host_name), same=operator.is_))
        feed.streams += 1
        return feed

    def close(self, host_name: str) -> None:
        """One stream of the host is over."""
        feed = self._feeds.get(host_name)
        if feed is not None:
            feed.streams -= 1
            if feed.streams <= 0:
                del self._feeds[host_name]

    async def run(self) -> None:
        """Publish every change. A state that can't be built is logged and skipped: everyone keeps what they have."""
        async for _ in self._state.watch():
            self._follow()
            untold, self._untold = self._untold, set()
            for number, host_name in enumerate(sorted(untold)):
                self._publish(host_name)
                if number % _BATCH == _BATCH - 1:
                    await asyncio.sleep(0)

    def _follow(self) -> None:
        """Build for the newest state, if that isn't done yet."""
        if self._state.value is self._builder.state:
            return
        try:
            self._untold.update(self._builder.update(self._state.value))
        except Exception:
            log.exception("snapshot not built", services=len(self._state.value.services))

    def _publish(self, host_name: str) -> None:
        feed = self._feeds.get(host_name)
        if feed is None:
            return
        if not self._builder.knows(host_name):
            feed.removed.set(True)
            return
        feed.removed.set(False)
        feed.snapshot.set(self._builder.snapshot(host_name))
