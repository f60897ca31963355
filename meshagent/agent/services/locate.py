"""Keeps up to date where each declared service listens: a process may restart on another address at any time.

Reading the sockets costs some milliseconds, so it is done every few seconds, more often while a service listens
nowhere (it is about to start), and at once when declarations or addresses change.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

import structlog

from meshagent.agent.services.target import Listening, Target, Where, decide_target
from meshagent.model.address import IPAddress
from meshagent.model.errors import MeshagentError
from meshagent.model.service import DeclaredService
from meshagent.runtime.latest import Latest, any_newer

log = structlog.get_logger()

SETTLED_SECONDS = 5.0
STARTING_SECONDS = 1.0

ReadSockets = Callable[[], Iterable[Listening]]


class Locator:
    """``targets`` follows by service name."""

    def __init__(
        self,
        services: Latest[tuple[DeclaredService, ...]],
        addresses: Latest[tuple[IPAddress, ...]],
        read_sockets: ReadSockets,
    ) -> None:
        self._services = services
        self._addresses = addresses
        self._read_sockets = read_sockets
        self.targets: Latest[Mapping[str, Target]] = Latest(MappingProxyType({}))

    def check_address(self, service: DeclaredService) -> IPAddress:
        """Where a check of ``service`` goes now."""
        return self._target(service).check

    def _target(self, service: DeclaredService) -> Target:
        known = self.targets.value.get(service.name)
        return known or decide_target(service.target_port, (), self._addresses.value)

    async def refresh(self) -> None:
        """Read the sockets now, in a thread: the kernel's answer takes milliseconds on a busy host."""
        sockets = tuple(await asyncio.to_thread(self._read_sockets)) if self._services.value else ()
        services = self._services.value
        targets = {s.name: decide_target(s.target_port, sockets, self._addresses.value) for s in services}
        self.targets.set(MappingProxyType(targets))

    async def run(self) -> None:
        """Refresh until cancelled."""
        while True:
            services, addresses = self._services.version, self._addresses.version
            try:
                await self.refresh()
            except MeshagentError as error:  # what was known stays; the next look is seconds away
                log.warning("listening sockets could not be read", code=error.code, error=error.message)
            waiting = any(target.where is Where.NOWHERE for target in self.targets.value.values())
            pause = STARTING_SECONDS if waiting else SETTLED_SECONDS
            await any_newer((self._services, self._addresses), (services, addresses), pause)
