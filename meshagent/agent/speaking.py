"""What the host says to the hub, and when it says its first word."""

import asyncio
import contextlib

from meshagent.agent.derived import PROXY_NOT_READY
from meshagent.agent.services.announce import Announcer as Announcing
from meshagent.agent.services.hysteresis import UNCHECKED
from meshagent.agent.upstream.announce import Announcer
from meshagent.model.service import DeclaredService
from meshagent.protocol.announce import Announced, announcement_message
from meshagent.protocol.pb.meshagent_v1_pb2 import Announcement
from meshagent.runtime.latest import Latest

#: A start with warm caches knows how its services are within 0.3 s, on a busy host within some seconds; one whose proxy
#: can't start says so after this. Less than the grace that the hub gives a silent host (15 s).
FIRST_WORD_SECONDS = 8.0


class Speaker:
    """Joins ``announcing`` (what there is to say) to ``announcer`` (the stream that says it)."""

    def __init__(
        self,
        announcing: Announcing,
        announcer: Announcer,
        message: Latest[Announcement],
        declared: Latest[tuple[DeclaredService, ...]],
    ) -> None:
        self._announcing, self._announcer = announcing, announcer
        self._message, self._declared = message, declared

    async def run(self) -> None:
        """The stream opens as soon as there is something to say, and follows it until cancelled."""
        opened: asyncio.Task[None] | None = None
        await self._know_ourselves()
        try:
            async for announced in self._announcing.announcement.watch():
                if announced is None:
                    continue
                self._message.set(announcement_message(announced))
                opened = opened or asyncio.create_task(self._announcer.run())
        finally:
            if opened is not None:
                opened.cancel()
                await asyncio.gather(opened, return_exceptions=True)

    async def _know_ourselves(self) -> None:
        """Until the proxy serves and every service was looked at, for a bounded time.

        What the hub last heard of this host is still valid (its lease has a grace): a restarted agent that first said
        "nothing healthy here" would take its services away from everybody for a moment.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_WORD_SECONDS):
                async for announced in self._announcing.announcement.watch():
                    if announced is not None and self._is_settled(announced):
                        return

    def _is_settled(self, announced: Announced) -> bool:
        """Every declared service is in it, with a verdict that is about the service."""
        names = {service.name for service in self._declared.value} if announced.posture.serves_inbound else set()
        verdicts = {told.declared.name: told.health for told in announced.services}
        return names <= verdicts.keys() and not {UNCHECKED, PROXY_NOT_READY} & set(verdicts.values())
