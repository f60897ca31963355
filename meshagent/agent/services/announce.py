"""What this host says of itself to the control plane, put together from what the other parts know.

Building is a pure function; ``Announcer`` calls it whenever one of its sources changes and publishes the
result. The stream to the control plane numbers and sends it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from meshagent.agent.services.hysteresis import UNCHECKED
from meshagent.agent.services.target import Target
from meshagent.model.address import IPAddress
from meshagent.model.condition import Condition
from meshagent.model.doors import Door
from meshagent.model.posture import Posture
from meshagent.model.service import DeclaredService, ServiceHealth
from meshagent.protocol.announce import Announced, AnnouncedCondition, AnnouncedService
from meshagent.runtime.latest import Latest, any_newer


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What the host is, besides its services. ``addresses`` preferred first."""

    boot_id: str = ""
    addresses: tuple[IPAddress, ...] = ()
    posture: Posture = Posture.PERMISSIVE
    locality: str = ""
    agent_version: str = ""
    envoy_version: str = ""
    doors: frozenset[Door] = frozenset()


def build_announcement(
    facts: HostFacts,
    services: Iterable[DeclaredService],
    targets: Mapping[str, Target],
    health: Mapping[str, ServiceHealth],
    conditions: Iterable[Condition] = (),
) -> Announced:
    """The announcement, generation 0. A posture that serves nothing inbound announces no service, and a service
    that was not located yet waits.
    """
    serving = facts.posture.serves_inbound
    return Announced(
        generation=0,
        boot_id=facts.boot_id,
        addresses=facts.addresses,
        services=tuple(
            AnnouncedService(
                replace(service, site=service.site or facts.locality),
                targets[service.name].mesh,
                health.get(service.name, UNCHECKED),
            )
            for service in services
            if serving and service.name in targets
        ),
        posture=facts.posture,
        locality=facts.locality,
        agent_version=facts.agent_version,
        envoy_version=facts.envoy_version,
        doors=facts.doors,
        conditions=tuple(AnnouncedCondition(c.code, c.severity.value, c.text) for c in conditions),
    )


class Announcer:
    """``announcement`` follows its sources: None until the host has an address, generation 0 (the stream numbers what
    it sends); without a new value where nothing new would be said.
    """

    def __init__(
        self,
        facts: Latest[HostFacts],
        services: Latest[tuple[DeclaredService, ...]],
        targets: Latest[Mapping[str, Target]],
        health: Latest[Mapping[str, ServiceHealth]],
        conditions: Latest[tuple[Condition, ...]],
    ) -> None:
        self._facts = facts
        self._services = services
        self._targets = targets
        self._health = health
        self._conditions = conditions
        self.announcement: Latest[Announced | None] = Latest(None)
        self.refresh()

    async def run(self) -> None:
        """Follow the sources until cancelled."""
        sources: tuple[Latest[Any], ...] = (
            self._facts,
            self._services,
            self._targets,
            self._health,
            self._conditions,
        )
        while True:
            versions = [source.version for source in sources]
            self.refresh()
            await any_newer(sources, versions)

    def refresh(self) -> None:
        """Publish what is to be said now; a host that has lost its last address says nothing new."""
        if self._facts.value.addresses:
            self.announcement.set(self._build())

    def _build(self) -> Announced:
        return build_announcement(
            self._facts.value,
            self._services.value,
            self._targets.value,
            self._health.value,
            self._conditions.value,
        )
