"""The values of capture: what is wanted, what is known about this host, and the ``Intent`` that comes of both.

An ``Intent`` checks itself: nothing but real numbers and addresses may reach a rule, whoever built it.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from meshagent.config.settings import Backend, CaptureConfig, Exclude, PortRange, RedirectMode
from meshagent.model.address import IPAddress, IPNetwork, MeshAddress
from meshagent.model.cgroup import Cgroup
from meshagent.model.doors import Door, OpenDoor, PortDoor
from meshagent.model.errors import UsageError
from meshagent.model.policy import HostPolicy, RedirectReason
from meshagent.model.posture import Posture
from meshagent.model.service import DeclaredService

_MAX_UID = 2**32 - 2  # (uid_t)-1 means "no change" to the kernel
#: What systemd makes of unit names; nft takes no escapes in quotes, so a backslash is only a backslash.
_CGROUP = re.compile(r"[A-Za-z0-9:_.@\\-]{1,255}(?:/[A-Za-z0-9:_.@\\-]{1,255}){0,20}", re.ASCII)
_INTERFACE = re.compile(r"[A-Za-z0-9_.@-]{1,15}", re.ASCII)


class Mode(StrEnum):
    """``off``: nothing of ours in the kernel. ``drain``: nothing new is captured, open connections are looked after."""

    OFF = "off"
    DRAIN = "drain"
    ACTIVE = "active"


class Ipv6(StrEnum):
    """What happens to mesh addresses of IPv6; always one of these, never an accident."""

    CAPTURE = "capture"
    LEAVE = "leave"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What capture must know about this machine.

    ``gateways`` are next hops of default routes, ``nameservers`` those of resolv.conf in order, ``session_ports`` local
    ports of the remote session that is typing.
    ``ipv6_usable``: the proxy can bind ::1; ``tproxy_usable``: the kernel can hand over packets as they are.
    ``nft_usable``, ``iptables_usable`` (the legacy one): rules can reach the kernel that way, and ask for conntrack
    zones (``zones_usable``). ``cgroup_usable``: they can ask for a socket's control group; ``cgroups`` are those of the
    units that agent.yaml names and that run.
    """

    proxy_uid: int
    own_addresses: frozenset[IPAddress] = frozenset()
    gateways: frozenset[IPAddress] = frozenset()
    nameservers: tuple[IPAddress, ...] = ()
    hub_addresses: frozenset[IPAddress] = frozenset()
    sshd_ports: frozenset[int] = frozenset()
    session_ports: frozenset[int] = frozenset()
    ipv6_usable: bool = True
    nft_usable: bool = True
    tproxy_usable: bool = True
    iptables_usable: bool = False
    zones_usable: bool = True
    cgroup_usable: bool = True
    cgroups: tuple[Cgroup, ...] = ()


@dataclass(frozen=True, slots=True)
class Wishes:
    """What operator and mesh want. ``mesh`` holds exactly the pairs the proxy has listeners for.

    ``unserved``: those that it knows, but whose family has no port of its own where captured connections could arrive;
    ``shut``: such families, whether or not an address of theirs is known.
    ``capture_dns``: queries to the nameservers of resolv.conf go to the agent's resolver. ``draining``: capture was on
    in this boot, so connections through the proxy may still be open. ``doors`` and ``ports`` are those the proxy really
    has; None: nobody knows yet (a plan before enrolling), so all are taken to be there.
    """

    posture: Posture
    config: CaptureConfig = field(default_factory=CaptureConfig)
    services: tuple[DeclaredService, ...] = ()
    policy: HostPolicy = field(default_factory=HostPolicy)
    mesh: frozenset[MeshAddress] = frozenset()
    unserved: frozenset[MeshAddress] = frozenset()
    shut: frozenset[int] = frozenset()
    capture_dns: bool = False
    draining: bool = False
    doors: frozenset[OpenDoor] | None = None
    ports: frozenset[PortDoor] | None = None

    def has(self, door: Door, family: int) -> bool:
        return self.doors is None or (door, family) in self.doors


@dataclass(frozen=True, slots=True)
class Spared:
    """A local port that is never captured, and why."""

    port: int
    reason: str


@dataclass(frozen=True, slots=True)
class Redirected:
    """A declared port whose connections from outside are handed to the proxy, and why. ``plain``: plain text goes on
    to the process."""

    port: int
    reason: RedirectReason
    families: tuple[int, ...]
    plain: bool


@dataclass(frozen=True, slots=True)
class RefusedClaim:
    """An address the mesh claims and this host doesn't hand over. ``code`` is stable kebab-case."""

    address: MeshAddress
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Intent:
    """Everything the renderers need. Addresses and ports are sorted, so equal intents render to equal text.

    ``counted_ports`` and ``strict_ports`` are ports processes listen on; ``nameservers`` is empty where DNS isn't
    captured; ``fail_open``: literals go direct while the proxy is dead; else they are refused, and so are ``unserved``
    ones, for which the proxy has no port. ``all_families``: IP versions of which every
    connection is captured, except to ``direct`` networks and ``direct_ports``; ``refused_families``: those of which the
    same connections are refused, because the proxy has no port for them. ``inbound_families``: those of which
    what comes in for a listening process passes the proxy, except to ``inbound_direct_ports``, by ``inbound_mode``
    (TPROXY or REDIRECT). ``redirected``: ports of which that holds because the mesh says so; what the proxy gets of
    them is neither counted nor refused in the kernel. ``bridges`` are captured over ``bridged_families``. With
    ``only_units``, nothing but ``units`` is captured of what leaves. ``waiting``: what was asked for and can't be done
    yet, in sentences.
    """

    mode: Mode
    proxy_uid: int
    virtual: tuple[MeshAddress, ...] = ()
    claimed: tuple[MeshAddress, ...] = ()
    unserved: tuple[MeshAddress, ...] = ()
    nameservers: tuple[IPAddress, ...] = ()
    counted_ports: tuple[int, ...] = ()
    strict_ports: tuple[int, ...] = ()
    ipv6: Ipv6 = Ipv6.CAPTURE
    ipv6_usable: bool = True
    fail_open: bool = True
    exclude: Exclude = field(default_factory=Exclude)
    all_families: tuple[int, ...] = ()
    refused_families: tuple[int, ...] = ()
    direct: tuple[IPNetwork, ...] = ()
    direct_ports: tuple[PortRange, ...] = ()
    inbound_families: tuple[int, ...] = ()
    inbound_mode: RedirectMode = RedirectMode.TPROXY
    inbound_direct_ports: tuple[PortRange, ...] = ()
    redirected: tuple[Redirected, ...] = ()
    bridges: tuple[str, ...] = ()
    bridged_families: tuple[int, ...] = ()
    only_units: bool = False
    units: tuple[Cgroup, ...] = ()
    exclude_units: tuple[Cgroup, ...] = ()
    spared: tuple[Spared, ...] = ()
    refused: tuple[RefusedClaim, ...] = ()
    waiting: tuple[str, ...] = ()
    backend: Backend = Backend.NFT

    def __post_init__(self) -> None:
        _require_renderable(self)

    @property
    def everything_families(self) -> tuple[int, ...]:
        """IP versions of which nothing leaves directly but what has to."""
        return tuple(sorted({*self.all_families, *self.refused_families}))

    @property
    def arriving_families(self) -> tuple[int, ...]:
        """IP versions of which anything that comes in is handed to the proxy."""
        some = {version for port in self.redirected for version in port.families}
        return tuple(sorted({*self.inbound_families, *some}))

    @property
    def captured(self) -> tuple[str, ...]:
        """One sentence for each kind of traffic that is captured, for people."""
        return tuple(_sentences(self))


def _sentences(intent: Intent) -> Iterable[str]:
    if intent.mode is not Mode.ACTIVE:
        return
    yield f"new connections to {len(intent.virtual)} virtual and {len(intent.claimed)} claimed addresses"
    if intent.unserved:
        yield f"those to {len(intent.unserved)} more are refused: the proxy has no port for them"
    if intent.all_families:
        versions = " and ".join(f"IPv{version}" for version in intent.all_families)
        yield f"all other new TCP connections that leave this host over {versions}"
    for version in intent.refused_families:
        yield f"all that would leave this host over IPv{version} is refused: the proxy has no port for it"
    if intent.bridged_families:
        yield f"the same of containers behind {', '.join(intent.bridges)}"
    if intent.inbound_families:
        versions = " and ".join(f"IPv{version}" for version in intent.inbound_families)
        yield f"what comes in over {versions} for processes that listen, by {intent.inbound_mode.value}"
    for port in intent.redirected:
        plain = "plain text goes on to the process" if port.plain else "everything else is closed"
        yield f"port {port.port} by {intent.inbound_mode.value}: {port.reason.text}; {plain}"
    if intent.nameservers:
        yield f"DNS queries to {', '.join(str(address) for address in intent.nameservers)}"
    if intent.counted_ports:
        yield f"plain-text callers counted on ports {', '.join(map(str, intent.counted_ports))}"
    if intent.strict_ports:
        yield f"plain-text callers refused on ports {', '.join(map(str, intent.strict_ports))}"


def _require_renderable(intent: Intent) -> None:
    """Nothing but real numbers and addresses may reach a rule, whoever built the intent."""
    uids = (intent.proxy_uid, *intent.exclude.uids, *intent.exclude.gids)
    if not all(_is_int(uid) and 0 <= uid <= _MAX_UID for uid in uids):
        raise UsageError("bad-uid", "a user or group number is out of range")
    if intent.proxy_uid == 0:
        raise UsageError("bad-uid", "the proxy must not run as root: exempting it would exempt every root program")
    declared = (*intent.counted_ports, *intent.strict_ports, *(each.port for each in intent.redirected))
    if not all(_is_port(port) for port in declared):
        raise UsageError("bad-port", "a declared port is not a number from 1 to 65535")
    if not all(_is_range(ports) for ports in _ranges(intent)):
        raise UsageError("bad-port", "an excluded port is not a number from 1 to 65535")
    for pair in (*intent.virtual, *intent.claimed, *intent.unserved):
        if not (_is_address(pair.ip) and _is_port(pair.port)):
            raise UsageError("bad-address", f"{str(pair)[:100]!r} is not an address and port")
    if not all(_is_address(address) for address in intent.nameservers):
        raise UsageError("bad-address", "a nameserver is not an IP address")
    if not all(isinstance(network, IPv4Network | IPv6Network) for network in (*intent.exclude.cidrs, *intent.direct)):
        raise UsageError("bad-address", "an excluded network is not an IP network")
    families = (*intent.everything_families, *intent.arriving_families, *intent.bridged_families)
    if not all(version in (4, 6) and _is_int(version) for version in families):
        raise UsageError("bad-address", "an IP version is 4 or 6")
    if not all(_is_cgroup(group) for group in (*intent.units, *intent.exclude_units)):
        raise UsageError("bad-unit", "a unit has no control group that a rule could name")
    for name in (*intent.exclude.interfaces, *intent.bridges):
        if not isinstance(name, str) or not _INTERFACE.fullmatch(name):
            raise UsageError("bad-interface", f"{str(name)[:100]!r} is not the name of a network interface")


def _ranges(intent: Intent) -> Iterable[object]:
    return (*intent.exclude.ports, *intent.direct_ports, *intent.inbound_direct_ports)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_port(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 65535


def _is_range(value: object) -> bool:
    return isinstance(value, PortRange) and _is_port(value.first) and _is_port(value.last) and value.first <= value.last


def _is_cgroup(value: object) -> bool:
    if not isinstance(value, Cgroup) or not isinstance(value.path, str) or not isinstance(value.unit, str):
        return False
    named = _CGROUP.fullmatch(value.path) and ".." not in value.path.split("/") and _CGROUP.fullmatch(value.unit)
    return bool(named) and _is_int(value.level) and 1 <= value.level <= 32 and _is_int(value.id) and value.id > 0


def _is_address(value: object) -> bool:
    """A zone id ('fe80::1%eth0') is free text to Python, so an address that carries one isn't accepted."""
    return isinstance(value, IPv4Address) or (isinstance(value, IPv6Address) and value.scope_id is None)
