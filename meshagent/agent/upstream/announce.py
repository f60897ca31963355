"""Keeps the host's announcement at the control plane: a stream open for as long as the host serves.

The lease lives as long as the stream. The whole announcement is sent when the stream opens and again on every change;
``goodbye`` takes the host out of discovery before it stops serving. Generations grow over streams, so that a late
message of an old stream never wins.

While the host has no stream for its configuration either, this one leaves it to that to find the control plane, and
follows at once, on the same connection: a thousand hosts that lost their hub ask for it half as often, and each of them
has both as soon as it has one.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import structlog

from meshagent.agent.upstream import backoff
from meshagent.agent.upstream.moved import until_moved
from meshagent.agent.upstream.state import UpstreamState
from meshagent.model.address import HostPort, IPAddress
from meshagent.model.errors import MeshagentError
from meshagent.model.identity import Identity
from meshagent.protocol.pb.meshagent_v1_pb2 import Announcement, AnnouncementResult
from meshagent.runtime.clock import Clock
from meshagent.runtime.latest import Latest

log = structlog.get_logger()

#: ``goodbye`` waits this long for the hub's word.
GOODBYE_PATIENCE = 2.0


class AnnounceStream(Protocol):
    """One ``meshagent.v1.Registry/Announce`` stream."""

    async def send(self, announcement: Announcement) -> None: ...

    def __aiter__(self) -> AsyncIterator[AnnouncementResult]: ...


AnnounceDial = Callable[[HostPort, Identity], AbstractAsyncContextManager[AnnounceStream]]


class Announcer:
    """Runs until cancelled. ``result`` is the hub's newest answer (None before), ``state`` how the stream is doing.

    ``own``: this host's addresses; the stream is opened anew when one of them goes. ``first``: the state of the stream
    that goes first; without one this goes by itself.
    """

    def __init__(
        self,
        announcement: Latest[Announcement],
        dial: AnnounceDial,
        addresses: Sequence[HostPort],
        identity: Latest[Identity],
        clock: Clock,
        *,
        own: Latest[tuple[IPAddress, ...]] | None = None,
        first: Latest[UpstreamState] | None = None,
        heard_time: Callable[[int], None] = lambda unix_ms: None,
        dice: Callable[[], float] = random.random,
    ) -> None:
        self.result: Latest[AnnouncementResult | None] = Latest(None)
        self.state: Latest[UpstreamState] = Latest(UpstreamState())
        self._announcement = announcement
        self._dial = dial
        self._addresses = tuple(addresses)
        self._identity = identity
        self._clock = clock
        self._heard_time = heard_time
        self._own: Latest[tuple[IPAddress, ...]] = own if own is not None else Latest(())
        self._first: Latest[UpstreamState] = first if first is not None else Latest(UpstreamState())
        self._follows = first is not None
        self._dice = dice
        # Milliseconds since 1970: grows over restarts of the agent without a file; the hub fences by boot id first.
        self._generation = int(clock.now().timestamp() * 1000)
        self._leaving = asyncio.Event()
        self._for_good = False
        self._answered: Latest[int] = Latest(0)

    async def run(self) -> None:
        """Addresses in order, again and again; ends after ``goodbye``."""
        failures = 0
        while not self._leaving.is_set():
            served, known = False, self._first.version
            for address in self._addresses:
                served = await self._try(address)
                if served or self._leaving.is_set():
                    break
            failures = 0 if served else failures + 1
            if not self._leaving.is_set():
                await self._pause(failures, known)

    async def goodbye(self, patience: float = GOODBYE_PATIENCE, *, for_good: bool = False) -> bool:
        """Leave discovery now; True when the hub confirmed. ``run`` ends; a hub that is away is not waited for.

        ``for_good`` gives the enrolment back too: the host's name is free again.
        """
        self._for_good = for_good
        connected, version = self.state.value.connected, self._answered.version
        self._leaving.set()
        if not connected:
            return False
        try:
            async with asyncio.timeout(patience):
                while self._answered.value < self._generation or self._answered.version == version:
                    await self._answered.newer(self._answered.version)
        except TimeoutError:
            return False
        return True

    async def _pause(self, failures: int, known: int) -> None:
        """Until it is worth another try; ``known``: the version of the first stream's state before the last one."""
        first = self._first
        alone = not self._follows or (first.value.connected and first.version == known)
        seconds = backoff.wait(failures, self._dice()) if alone else backoff.behind(self._dice())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while first.version == known or not first.value.connected:
                    known = first.version
                    await first.newer(known)

    async def _try(self, address: HostPort) -> bool:
        error = ""
        try:
            async with self._dial(address, self._identity.value) as stream:
                await self._serve(stream, address)
        except MeshagentError as caught:
            error = caught.message
        served = self.state.value.connected
        since = self._clock.now() if served or self.state.value.since is None else self.state.value.since
        self.state.set(UpstreamState(False, None, since, error or "the control plane closed the stream"))
        return served

    async def _serve(self, stream: AnnounceStream, address: HostPort) -> None:
        parts = [
            asyncio.create_task(part)
            for part in (self._read(stream, address), self._write(stream), until_moved(self._own))
        ]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                part.result()
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)

    async def _read(self, stream: AnnounceStream, address: HostPort) -> None:
        async for result in stream:
            if not self.state.value.connected:
                log.info("announced", address=str(address), services=len(result.services))
                self.state.set(UpstreamState(True, address, self._clock.now()))
            if result.unix_ms:
                self._heard_time(result.unix_ms)
            self.result.set(result)
            self._answered.set(result.generation)
            if self._leaving.is_set() and result.generation >= self._generation:
                return

    async def _write(self, stream: AnnounceStream) -> None:
        """The newest announcement now, and again whenever it changes; last of all the goodbye."""
        leaving = asyncio.create_task(self._leaving.wait())
        try:
            while not self._leaving.is_set():
                version = self._announcement.version
                await stream.send(self._next(goodbye=False))
                change = asyncio.create_task(self._announcement.newer(version))
                await asyncio.wait((leaving, change), return_when=asyncio.FIRST_COMPLETED)
                change.cancel()
            await stream.send(self._next(goodbye=True))
            await asyncio.Event().wait()  # the answer, or the caller's patience, ends the stream
        finally:
            leaving.cancel()

    def _next(self, *, goodbye: bool) -> Announcement:
        message = Announcement()
        message.CopyFrom(self._announcement.value)
        self._generation = max(self._generation + 1, int(self._clock.now().timestamp() * 1000))
        message.generation, message.goodbye = self._generation, goodbye
        message.leave = goodbye and self._for_good
        return message
