"""An ADS session that survives: one subscriber over many streams, over several addresses, over certificate changes.

The subscriber (pure) knows what is held and asked for; this loop gives it streams. A stream that ends is routine: what
is held stays, the next stream starts with its versions. Every response goes to the relay, whose verdict becomes the
ACK or NACK; responses are judged at the same time, because Envoy ACKs clusters only after their endpoints came.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import timedelta
from typing import Protocol

import structlog
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse

from meshagent.agent.upstream import backoff
from meshagent.agent.upstream.moved import until_moved
from meshagent.agent.upstream.state import UpstreamState
from meshagent.model.address import HostPort, IPAddress
from meshagent.model.errors import MeshagentError
from meshagent.model.identity import Identity
from meshagent.protocol.subscriber import Received, Subscriber
from meshagent.protocol.types import ProtocolError
from meshagent.runtime.clock import Clock
from meshagent.runtime.latest import Latest

log = structlog.get_logger()

#: A stream does not outlive the certificate it was opened with: with a newer one at hand it is reopened this long
#: before the old one expires. Until then a rotation changes nothing on the wire.
RENEW_MARGIN = timedelta(minutes=5)

#: After a control plane broke the protocol, a stream must live this long before that is forgotten.
QUIET_SECONDS = 30.0

#: When a stream ends, responses still with Envoy get this long to be judged.
LAST_VERDICTS = 1.0


class Stream(Protocol):
    """One delta-ADS stream (``transport.channel``)."""

    async def send(self, request: DeltaDiscoveryRequest) -> None: ...

    def __aiter__(self) -> AsyncIterator[DeltaDiscoveryResponse]: ...


#: Opens a stream to one address as somebody; raises ``MeshagentError`` when that can't be done. Leaving it closes it.
Dial = Callable[[HostPort, Identity], AbstractAsyncContextManager[Stream]]

#: Judges one response: refused names with reasons (``relay.Relay.offer``).
Judge = Callable[[Received], Awaitable[Mapping[str, str]]]


class Session:
    """Runs until cancelled. ``state`` says how it is doing; ``wanted`` (type -> names) is followed while it runs.

    ``own``: this host's addresses; a stream is opened anew when one of them goes.
    """

    def __init__(
        self,
        subscriber: Subscriber,
        judge: Judge,
        wanted: Latest[Mapping[str, frozenset[str]]],
        dial: Dial,
        addresses: Sequence[HostPort],
        identity: Latest[Identity],
        clock: Clock,
        *,
        own: Latest[tuple[IPAddress, ...]] | None = None,
        dice: Callable[[], float] = random.random,
    ) -> None:
        self.state: Latest[UpstreamState] = Latest(UpstreamState())
        self._subscriber = subscriber
        self._judge = judge
        self._wanted = wanted
        self._dial = dial
        self._addresses = tuple(addresses)
        self._identity = identity
        self._clock = clock
        self._own: Latest[tuple[IPAddress, ...]] = own if own is not None else Latest(())
        self._dice = dice
        self._asked: dict[str, frozenset[str]] = {}
        self._verdicts: dict[asyncio.Task[Mapping[str, str]], Received] = {}
        self._outbox: asyncio.Queue[DeltaDiscoveryRequest] = asyncio.Queue()

    async def run(self) -> None:
        """Addresses in order, again and again; the first that serves is kept until its stream ends."""
        failures = 0
        while True:
            served = False
            for address in self._addresses:
                served = await self._try(address)
                if served:
                    break
            failures = 0 if served else failures + 1
            await asyncio.sleep(backoff.wait(failures, self._dice()))

    async def _try(self, address: HostPort) -> bool:
        """One stream, until it ends. True when it served."""
        identity = self._identity.value
        error = broken = ""
        try:
            async with self._dial(address, identity) as stream:
                await self._serve(stream, address, identity)
        except ProtocolError as caught:
            error = broken = caught.message
        except MeshagentError as caught:
            error = caught.message
        await self._settle()
        served = self.state.value.connected and not broken  # one that breaks rules is not hurried back to
        if served:
            log.info("control plane stream ended", address=str(address), reason=error)
        elif error != self.state.value.last_error:
            log.warning("control plane not reached", address=str(address), error=error)
        since = self._clock.now() if served or self.state.value.since is None else self.state.value.since
        error = error or "the control plane closed the stream"
        self.state.set(UpstreamState(False, None, since, error, broken or self.state.value.violation))
        return served

    async def _serve(self, stream: Stream, address: HostPort, identity: Identity) -> None:
        """Everything that happens on one stream; the first part to end ends it."""
        self._outbox = asyncio.Queue()
        self._subscribe()
        for request in self._subscriber.open():
            self._outbox.put_nowait(request)
        parts = [
            asyncio.create_task(part)
            for part in (
                self._write(stream),
                self._read(stream, address),
                self._follow(),
                self._age(identity),
                self._forgive(),
                until_moved(self._own),
            )
        ]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                part.result()
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)

    async def _write(self, stream: Stream) -> None:
        while True:
            await stream.send(await self._outbox.get())

    async def _read(self, stream: Stream, address: HostPort) -> None:
        async for response in stream:
            if (in_return := self._subscriber.meet(response)) is not None:
                self._outbox.put_nowait(in_return)
                continue
            received = self._subscriber.receive(response)
            if not self.state.value.connected:
                log.info("control plane connected", address=str(address))
                now, violation = self._clock.now(), self.state.value.violation
                self.state.set(UpstreamState(True, address, now, violation=violation))
            task: asyncio.Task[Mapping[str, str]] = asyncio.ensure_future(self._judge(received))
            self._verdicts[task] = received
            task.add_done_callback(self._judged)

    async def _follow(self) -> None:
        async for _ in self._wanted.watch():
            for request in self._subscribe():
                self._outbox.put_nowait(request)

    async def _age(self, identity: Identity) -> None:
        """Ends the stream when the certificate it was opened with is about to expire and there is a newer one."""
        async for newer in self._identity.watch():
            if newer.serial != identity.serial:
                break
        left = identity.not_after - RENEW_MARGIN - self._clock.now()
        await asyncio.sleep(max(0.0, left.total_seconds()))
        log.info("control plane stream reopened with the new certificate")

    async def _forgive(self) -> None:
        """A stream that went well this long ends what was said of those before it; itself it never ends."""
        await asyncio.sleep(QUIET_SECONDS)
        self.state.set(replace(self.state.value, violation=""))
        await asyncio.Event().wait()

    def _subscribe(self) -> list[DeltaDiscoveryRequest]:
        """Make the subscriber ask for exactly the wanted names; what that needs to be sent."""
        requests: list[DeltaDiscoveryRequest] = []
        for type_url, names in self._wanted.value.items():
            asked = self._asked.get(type_url, frozenset())
            requests += self._subscriber.subscribe(type_url, names - asked)
            requests += self._subscriber.unsubscribe(type_url, asked - names)
            self._asked[type_url] = names
        return requests

    def _judged(self, task: asyncio.Task[Mapping[str, str]]) -> None:
        received = self._verdicts.pop(task, None)
        if received is None or task.cancelled():
            return
        error = task.exception()
        if error is not None:  # a defect of ours must not stop the session; the next stream brings it again
            log.error("configuration not judged", type=received.type_url, exc_info=error)
            return
        for request in self._subscriber.reject(received, task.result()):
            self._outbox.put_nowait(request)

    async def _settle(self) -> None:
        """Hold what the relay has taken already, though the ACK can't be sent any more.

        Else a removal that happens while we are away would never reach a resource that only the relay knows of.
        """
        if self._verdicts:
            await asyncio.wait(list(self._verdicts), timeout=LAST_VERDICTS)
        for task, received in list(self._verdicts.items()):
            del self._verdicts[task]
            task.cancel()
            self._subscriber.accept(received)
