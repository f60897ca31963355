"""``meshagent.v1.Registry/Announce``: one stream per host; as long as it lives, so does the host's lease.

The client certificate's serial names the enrolment, so a host can speak for itself only. The handler reads one
announcement after the other; an end from our side (superseded, revoked, replaced) interrupts the reading.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import structlog

from meshagent.hub.authority.enrolment import caller, end_host
from meshagent.hub.authority.policy import Kind, Refusal
from meshagent.hub.authority.service import refused
from meshagent.hub.registry.live import Session, SessionEnded
from meshagent.hub.registry.registry import Registry
from meshagent.hub.store.interface import Store
from meshagent.hub.store.rows import HostRow, HostStatus
from meshagent.model.errors import MeshagentError
from meshagent.protocol.announce import answer_message, parse_announcement
from meshagent.protocol.pb.meshagent_v1_pb2 import Announcement
from meshagent.runtime.clock import Clock
from meshagent.transport.grpc_server import EOF, Call, Handler, RefusedCallError, Stream
from meshagent.transport.methods import ANNOUNCE

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class AnnounceService:
    """Announcement streams into the registry."""

    store: Store
    clock: Clock
    registry: Registry

    def handlers(self) -> list[Handler]:
        """What the gRPC server serves of this."""
        return [Stream(ANNOUNCE, self.announce)]

    async def announce(self, context: Any, call: Call) -> None:
        """Serve one stream until either side ends it."""
        host = await host_of(self.store, call)
        try:
            session = self.registry.open(host.id)
        except SessionEnded as error:
            raise _ended(error) from error
        log.info("hub-host-connected", host=host.name, source=call.peer.address)
        try:
            await self._serve(context, session, host)
        finally:
            self.registry.close(session)
            log.info("hub-host-disconnected", host=host.name, reason=session.reason)

    async def _serve(self, context: Any, session: Session, host: HostRow) -> None:
        while True:
            message = await _unless_ended(context.read, session)
            if message is EOF:
                return
            try:
                answer = await self._take(message, session, host)
            except SessionEnded as error:
                raise _ended(error) from error
            except MeshagentError as error:
                raise refused(error) from error
            await context.write(answer)
            if message.leave:
                return

    async def _take(self, message: Announcement, session: Session, host: HostRow) -> Any:
        if message.leave:
            await self._leave(host)
            return answer_message(message.generation, (), self._unix_ms())
        answers = await self.registry.announce(session, parse_announcement(message))
        return answer_message(message.generation, answers, self._unix_ms())

    async def _leave(self, host: HostRow) -> None:
        """The host gives its enrolment back; saying it twice is harmless."""

        def work(tx: Any) -> HostRow | None:
            active = tx.host(host.name)
            return end_host(tx, host.name, HostStatus.LEFT) if active and active.id == host.id else None

        await self.store.transact(work)
        self.registry.ended(host.id, "left")
        log.info("hub-host-left", host=host.name)

    def _unix_ms(self) -> int:
        return int(self.clock.now().timestamp() * 1000)


async def host_of(store: Store, call: Call) -> HostRow:
    """The active enrolment behind a call's client certificate; raises the refusal that goes on the wire."""
    if not call.peer.serial:
        hint = "enroll this host with a token"
        raise refused(Refusal(Kind.UNAUTHENTICATED, "no-certificate", "no client certificate was shown", hint=hint))
    try:
        return await store.read(lambda tx: caller(tx, call.peer.serial))
    except MeshagentError as error:
        raise refused(error) from error


async def _unless_ended(read: Callable[[], Awaitable[Any]], session: Session) -> Any:
    """The next message; raises the end of the session when that comes first."""
    reading = asyncio.ensure_future(read())
    ended = asyncio.ensure_future(session.ended.wait())
    try:
        await asyncio.wait({reading, ended}, return_when=asyncio.FIRST_COMPLETED)
        if session.ended.is_set():
            text = f"this stream of host {session.host_name} has ended ({session.reason})"
            raise _ended(SessionEnded(f"session-{session.reason}", text))
        return reading.result()
    finally:
        ended.cancel()
        if not reading.done():
            reading.cancel()


def _ended(error: SessionEnded) -> RefusedCallError:
    """Superseded: the host's own newer stream is the one that counts, don't come back with this one."""
    gone = {"session-revoked", "session-left", "session-replaced", "unknown-host"}
    status = grpc.StatusCode.PERMISSION_DENIED if error.code in gone else grpc.StatusCode.ABORTED
    return RefusedCallError(status, error.code, error.message, hint="")
