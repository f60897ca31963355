"""Values made from others: the posture in force, how names are answered, how services are, what the host is.

Recomputed whenever a source changed; all of it is cheap and pure, and a value that stays equal wakes nobody.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from meshagent import __version__
from meshagent.agent.capture.intent import wanted_doors
from meshagent.agent.capture.status import CaptureStatus
from meshagent.agent.envoy.state import ProxyState
from meshagent.agent.here import Here
from meshagent.agent.identity.keystore import Enrolment
from meshagent.agent.names.resolver import DnsPlan, ResolverFacts
from meshagent.agent.names.resolver import decide as decide_dns
from meshagent.agent.names.table import NameIndex, build_index
from meshagent.agent.ports import Taken, on_port
from meshagent.agent.services.announce import HostFacts as HostDescription
from meshagent.config.settings import AgentConfig, CaptureConfig, DnsMode, Ipv6Mode
from meshagent.model.doors import ON_REQUEST, Door, OpenDoor
from meshagent.model.names import NameTable
from meshagent.model.policy import HostPolicy
from meshagent.model.ports import HBONE
from meshagent.model.posture import Posture
from meshagent.model.service import ServiceHealth
from meshagent.runtime.latest import Latest, any_newer

PROXY_NOT_READY = ServiceHealth(False, "the proxy is not ready")


@dataclass(frozen=True, slots=True)
class Sources:
    """What the values are made from. ``names_served``: our resolver has its sockets; ``taken``: by strangers."""

    config: Latest[AgentConfig]
    here: Here
    names: Latest[NameTable]
    health: Latest[Mapping[str, ServiceHealth]]
    proxy: Latest[ProxyState]
    capture: Latest[CaptureStatus]
    names_served: Latest[bool]
    taken: Latest[tuple[Taken, ...]]
    doors: Latest[frozenset[OpenDoor]]
    policy: Latest[HostPolicy]

    def all(self) -> tuple[Latest[Any], ...]:
        here = self.here
        followed = (self.config, here.conf, here.addresses, here.facts)
        proxy = (self.proxy, self.doors, self.policy)
        return (*followed, self.names, self.health, *proxy, self.capture, self.names_served, self.taken)


class Derived:
    """The values; ``connect`` says what they are made from, ``run`` keeps them."""

    def __init__(self, enrolment: Enrolment, config: AgentConfig) -> None:
        self.posture: Latest[Posture] = Latest(config.posture)
        self.capture_config: Latest[CaptureConfig] = Latest(config.capture)
        self.dns: Latest[DnsPlan] = Latest(DnsPlan(DnsMode.OFF))
        self.capture_dns: Latest[bool] = Latest(False)
        self.names: Latest[NameIndex] = Latest(NameIndex(enrolment.zone, known=False))
        self.health: Latest[Mapping[str, ServiceHealth]] = Latest({})
        self.host: Latest[HostDescription] = Latest(HostDescription())
        self._enrolment = enrolment
        self._sources: Sources | None = None
        self._made_from: tuple[NameTable, frozenset[int]] | None = None  # the index of names

    def connect(self, sources: Sources) -> None:
        """The parts exist now; they were made with these values in hand."""
        self._sources = sources

    async def run(self) -> None:
        """Recompute whenever a source changed, until cancelled."""
        values = self._known.all()
        while True:
            versions = [value.version for value in values]
            self.refresh()
            await any_newer(values, versions)

    def refresh(self) -> None:
        """Recompute everything now."""
        config = self._known.config.value
        self.posture.set(self._posture(config))
        self.capture_config.set(config.capture)
        self.refresh_names()
        self.health.set(self._health())
        self.host.set(self._description(config))

    def refresh_names(self) -> None:
        """How a query reaches us, and what we answer."""
        config, here = self._known.config.value, self._known.here
        plan = decide_dns(config.dns.mode, self.posture.value, ResolverFacts(here.conf.value))
        self.dns.set(plan)
        self.capture_dns.set(plan.mode is DnsMode.CAPTURE and self._known.names_served.value)
        made_from = self._known.names.value, self._families(config)
        if self._made_from and self._made_from[0] is made_from[0] and self._made_from[1] == made_from[1]:
            return  # building the index of 1,000 services takes 50 ms, and this runs whenever anything changed
        self._made_from = made_from
        table, families = made_from
        index = build_index(table, namespace=self._enrolment.namespace, zone=self._enrolment.zone, families=families)
        self.names.set(index)

    @property
    def _known(self) -> Sources:
        assert self._sources is not None, "connect comes first"
        return self._sources

    def _posture(self, config: AgentConfig) -> Posture:
        """What was rolled back is not in force, whatever agent.yaml says, until a person decides anew."""
        return Posture.OBSERVE if self._known.capture.value.rolled_back else config.posture

    def _families(self, config: AgentConfig) -> frozenset[int]:
        """4 and 6, those of which a program here can use an address of the mesh."""
        facts = self._known.here.facts.value
        own = {ip.version for ip in facts.own_addresses if not ip.is_loopback and not ip.is_link_local}
        captured = facts.ipv6_usable and config.capture.ipv6 in (Ipv6Mode.AUTO, Ipv6Mode.CAPTURE)
        return frozenset(own if captured else own - {6})

    def _health(self) -> Mapping[str, ServiceHealth]:
        """A service that the mesh reaches through our proxy is as well as the proxy and its port."""
        health, taken = self._known.health.value, on_port(self._known.taken.value, HBONE)
        if taken:
            return dict.fromkeys(health, ServiceHealth(False, taken[0].text))
        return health if self._known.proxy.value.ready else dict.fromkeys(health, PROXY_NOT_READY)

    def _description(self, config: AgentConfig) -> HostDescription:
        here = self._known.here
        return HostDescription(
            boot_id=here.boot_id,
            addresses=here.addresses.value,
            posture=self.posture.value,
            locality=config.locality,
            agent_version=__version__,
            envoy_version=self._known.proxy.value.version,
            doors=self._doors(config),
        )

    def _doors(self, config: AgentConfig) -> frozenset[Door]:
        """Those asked for, and those the proxy has: taking a listener away would close its connections."""
        there = {door for door, _ in self._known.doors.value} & ON_REQUEST
        facts, policy = self._known.here.facts.value, self._known.policy.value
        return wanted_doors(config.capture, self.posture.value, facts, policy) | there
