"""Announcements between the agent's values and their messages; validated where they come in.

The hub trusts nothing in an announcement: names, ports, addresses and sizes are checked here, each bad service is
named and refused alone, and what the whole cannot do without raises.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from meshagent.model.address import IPAddress, parse_ip
from meshagent.model.doors import ON_REQUEST, Door
from meshagent.model.errors import UsageError
from meshagent.model.names import is_label
from meshagent.model.posture import Posture
from meshagent.model.service import DeclaredService, ServiceHealth, ServiceProtocol
from meshagent.protocol.pb import meshagent_v1_pb2 as pb

#: One host is a machine, not a fleet: more than this is a defect or an attack.
MAX_SERVICES = 1_000
MAX_ADDRESSES = 64
MAX_LABELS = 64
MAX_CONDITIONS = 100
_MAX_LABEL_CHARS = 317  # Kubernetes: prefix 253, '/', name 63
_MAX_TEXT = 1_024
_MAX_WEIGHT = 10_000
_MAX_PRIORITY = 127


@dataclass(frozen=True, slots=True)
class AnnouncedService:
    """One service of one host. ``target_address``: where the local proxy reaches the process."""

    declared: DeclaredService
    target_address: IPAddress
    health: ServiceHealth


@dataclass(frozen=True, slots=True)
class AnnouncedCondition:
    """A condition of a host as the hub shows it."""

    code: str
    severity: str
    text: str


@dataclass(frozen=True, slots=True)
class Announced:
    """All that a host says of itself. ``addresses`` preferred first; ``generation`` grows within one session.

    ``goodbye``: leave discovery now; with ``leave`` the enrolment is given back too.
    ``doors``: listeners beside those that every proxy has.
    ``refused``: service name -> why it was not taken (only ever filled on the receiving side).
    """

    generation: int
    boot_id: str
    addresses: tuple[IPAddress, ...]
    services: tuple[AnnouncedService, ...] = ()
    posture: Posture = Posture.PERMISSIVE
    locality: str = ""
    agent_version: str = ""
    envoy_version: str = ""
    conditions: tuple[AnnouncedCondition, ...] = ()
    goodbye: bool = False
    leave: bool = False
    doors: frozenset[Door] = frozenset()
    refused: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ServiceAnswer:
    """What the hub made of one service: its mesh host name and virtual addresses, or why it refused."""

    name: str
    accepted: bool
    reason: str = ""
    host: str = ""
    virtual_addresses: tuple[IPAddress, ...] = ()


def announcement_message(announced: Announced) -> pb.Announcement:
    """The message of one announcement."""
    return pb.Announcement(
        generation=announced.generation,
        boot_id=announced.boot_id,
        addresses=[str(address) for address in announced.addresses],
        agent_version=announced.agent_version,
        envoy_version=announced.envoy_version,
        posture=announced.posture.value,
        locality=announced.locality,
        services=[_service_message(service) for service in announced.services],
        conditions=[
            pb.Condition(code=c.code, severity=c.severity, text=c.text[:_MAX_TEXT]) for c in announced.conditions
        ],
        goodbye=announced.goodbye,
        leave=announced.leave,
        doors=sorted(announced.doors),
    )


def _service_message(service: AnnouncedService) -> pb.Service:
    declared = service.declared
    return pb.Service(
        name=declared.name,
        port=declared.port,
        target_port=declared.target_port,
        target_address=str(service.target_address),
        protocol=declared.protocol.value,
        labels=dict(declared.labels),
        weight=declared.weight,
        priority=declared.priority,
        site=declared.site,
        healthy=service.health.healthy,
        reason=service.health.reason[:_MAX_TEXT],
    )


def parse_announcement(message: pb.Announcement) -> Announced:
    """The values of a message. Raises ``UsageError`` (``bad-announcement``) where the whole makes no sense.

    A service that makes no sense is left out and named in ``refused``.
    """
    _require(len(message.services) <= MAX_SERVICES, f"more than {MAX_SERVICES} services")
    _require(0 < len(message.addresses) <= MAX_ADDRESSES, f"not 1 to {MAX_ADDRESSES} addresses")
    _require(message.posture in set(Posture), "an unknown posture")
    for text in (message.boot_id, message.agent_version, message.envoy_version, message.locality):
        _require(len(text) <= 253 and text.isprintable(), "an unreadable text")
    services: list[AnnouncedService] = []
    refused: dict[str, str] = {}
    seen: set[str] = set()
    for service in message.services:
        defect = _defect(service) or ("announced twice" if service.name in seen else "")
        seen.add(service.name)
        if defect:
            refused[_shown(service.name)] = defect
        else:
            services.append(_service(service))
    return Announced(
        generation=message.generation,
        boot_id=message.boot_id,
        addresses=tuple(_host_address(text) for text in message.addresses),
        services=tuple(services),
        posture=Posture(message.posture),
        locality=message.locality,
        agent_version=message.agent_version,
        envoy_version=message.envoy_version,
        conditions=tuple(_condition(condition) for condition in message.conditions[:MAX_CONDITIONS]),
        goodbye=message.goodbye,
        leave=message.leave,
        doors=frozenset(door for door in ON_REQUEST if door in message.doors),  # a newer agent may know more
        refused=refused,
    )


def _service(message: pb.Service) -> AnnouncedService:
    target = parse_ip(message.target_address)
    assert target is not None  # _defect has seen it
    declared = DeclaredService(
        name=message.name,
        port=message.port,
        target_port=message.target_port,
        protocol=ServiceProtocol(message.protocol),
        labels=tuple(sorted(message.labels.items())),
        weight=message.weight,
        priority=message.priority,
        site=message.site,
    )
    health = ServiceHealth(message.healthy, "" if message.healthy else _shown(message.reason, _MAX_TEXT))
    return AnnouncedService(declared, target, health)


def _defect(message: pb.Service) -> str:
    """Why a service makes no sense, or ''."""
    target = parse_ip(message.target_address)
    labels = [*message.labels.keys(), *message.labels.values()]
    checks = (
        (is_label(message.name), "its name is not a DNS label"),
        (1 <= message.port <= 65535 and 1 <= message.target_port <= 65535, "a port is not from 1 to 65535"),
        (target is not None, "its target address is not an IP address"),
        (target is None or not (target.is_multicast or target.is_unspecified), "its target cannot be connected to"),
        (message.protocol in set(ServiceProtocol), f"protocol {_shown(message.protocol, 40)!r} is unknown"),
        (message.weight <= _MAX_WEIGHT and message.priority <= _MAX_PRIORITY, "weight or priority is out of range"),
        (len(message.labels) <= MAX_LABELS, f"more than {MAX_LABELS} labels"),
        (all(len(text) <= _MAX_LABEL_CHARS and text.isprintable() for text in labels), "a label is unreadable"),
        (len(message.site) <= 253 and message.site.isprintable(), "its site is unreadable"),
    )
    return next((text for good, text in checks if not good), "")


def _condition(message: pb.Condition) -> AnnouncedCondition:
    return AnnouncedCondition(_shown(message.code), _shown(message.severity), _shown(message.text, _MAX_TEXT))


def _host_address(text: str) -> IPAddress:
    """An address other hosts connect to."""
    address = parse_ip(text)
    usable = address is not None and not (address.is_loopback or address.is_multicast or address.is_unspecified)
    _require(usable, f"{_shown(text)!r} is not an address of a host")
    assert address is not None
    return address


def _require(good: bool, what: str) -> None:
    if not good:
        raise UsageError("bad-announcement", f"the announcement has {what}")


def _shown(text: str, limit: int = 253) -> str:
    """Text from elsewhere, fit for logs and screens."""
    return "".join(c if c.isprintable() else "?" for c in text[:limit])


def answer_message(generation: int, answers: Sequence[ServiceAnswer], unix_ms: int) -> pb.AnnouncementResult:
    """The hub's answer to one announcement. ``unix_ms``: the hub's clock."""
    return pb.AnnouncementResult(
        generation=generation,
        unix_ms=unix_ms,
        services=[
            pb.ServiceResult(
                name=answer.name,
                accepted=answer.accepted,
                reason=answer.reason[:_MAX_TEXT],
                host=answer.host,
                virtual_addresses=[str(address) for address in answer.virtual_addresses],
            )
            for answer in answers
        ],
    )


def parse_answer(message: pb.AnnouncementResult) -> tuple[ServiceAnswer, ...]:
    """What the hub made of the services; addresses that cannot be read are left out."""
    return tuple(
        ServiceAnswer(
            name=_shown(result.name),
            accepted=result.accepted,
            reason=_shown(result.reason, _MAX_TEXT),
            host=_shown(result.host),
            virtual_addresses=tuple(ip for text in result.virtual_addresses if (ip := parse_ip(text)) is not None),
        )
        for result in message.services[:MAX_SERVICES]
    )
