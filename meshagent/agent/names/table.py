"""What the mesh's names mean on this host: an index from the control plane's name table. Pure.

A name of the table answers as it stands. For names of the zone two more forms are made, unless the table itself holds
them: ``<service>.<zone>`` for the host's own namespace and ``<service>.<namespace>.global`` for any site. Everything
else inside the zone does not exist; everything outside it (also unknown ``.global`` names: that is a real top-level
domain) belongs to the real DNS.
"""

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Address, IPv6Address

from meshagent.agent.names.packet import encode_name
from meshagent.model.address import IPAddress
from meshagent.model.names import DEFAULT_ZONE, NameTable

#: More addresses than this in one answer help nobody, and would not fit a message at 4,000.
MAX_ADDRESSES = 256


class Absent(Enum):
    """Why a name has no records here."""

    #: outside the mesh: ask the real DNS
    FOREIGN = "foreign"
    #: inside the zone and unknown: NXDOMAIN
    UNKNOWN = "unknown"
    #: inside the zone, only longer names exist (an empty non-terminal, RFC 8020): NOERROR without records
    EMPTY = "empty"


@dataclass(frozen=True, slots=True)
class Addresses:
    """The addresses of one name, in the order of the control plane."""

    v4: tuple[IPv4Address, ...] = ()
    v6: tuple[IPv6Address, ...] = ()


@dataclass(frozen=True)
class NameIndex:
    """Wire name (lower case) -> addresses, and which part of the name space is the mesh's.

    ``parents`` are the empty non-terminals of the zone, the zone itself included. ``known`` is False before the first
    name table has come: then a name of the zone may exist all the same.
    """

    zone: str = DEFAULT_ZONE
    hosts: Mapping[bytes, Addresses] = field(default_factory=dict)
    parents: frozenset[bytes] = frozenset()
    known: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "zone_wire", encode_name(self.zone))

    zone_wire: bytes = field(init=False, default=b"")

    def find(self, name: bytes) -> Addresses | Absent:
        """Look up a wire name in lower case."""
        if (found := self.hosts.get(name)) is not None:
            return found
        if not self.zone_offset(name):
            return Absent.FOREIGN
        return Absent.EMPTY if name in self.parents else Absent.UNKNOWN

    def zone_offset(self, name: bytes) -> int:
        """Where the zone starts in ``name``, counted from 1 (0 = the name is outside the zone)."""
        start = len(name) - len(self.zone_wire)
        if start < 0 or not name.endswith(self.zone_wire):
            return 0
        position = 0
        while position < start:
            position += 1 + name[position]
        return position + 1 if position == start else 0

    def lookup(self, name: str) -> tuple[IPAddress, ...] | None:
        """The addresses of a name as a person writes it; None when the mesh has none."""
        try:
            found = self.hosts.get(encode_name(name))
        except ValueError:
            return None
        return None if found is None else (*found.v4, *found.v6)


def build_index(
    table: NameTable, *, namespace: str, zone: str = DEFAULT_ZONE, families: Container[int] = (4, 6)
) -> NameIndex:
    """The index for a host in ``namespace``; only addresses of ``families`` are answered.

    A family that isn't captured leads nowhere, and on a host without an IPv4 address of its own the kernel sends from
    0.0.0.0, where no answer ever comes back. A name that can't be written in DNS rejects only itself.
    """
    hosts: dict[bytes, Addresses] = {}
    for name, addresses in [*_own(table), *_aliases(table, namespace, zone)]:
        try:
            wire = encode_name(name)
        except ValueError:  # too long, an empty label, letters outside ASCII
            continue
        hosts.setdefault(wire, _addresses(addresses, families))
    zone_wire = encode_name(zone)
    return NameIndex(zone, hosts, frozenset(_parents(hosts, zone_wire) | {zone_wire}), table.known)


def _own(table: NameTable) -> Iterator[tuple[str, tuple[IPAddress, ...]]]:
    for name, entry in table.entries.items():
        yield name, entry.addresses


def _aliases(table: NameTable, namespace: str, zone: str) -> Iterator[tuple[str, tuple[IPAddress, ...]]]:
    for name, entry in table.entries.items():
        service, _, rest = name.lower().removesuffix("." + zone).partition(".")
        if not name.lower().endswith("." + zone) or not rest or "." in rest:
            continue
        yield f"{service}.{rest}.global", entry.addresses
        if rest == namespace:
            yield f"{service}.{zone}", entry.addresses


def _addresses(addresses: tuple[IPAddress, ...], families: Container[int]) -> Addresses:
    usable = [ip for ip in addresses if ip.version in families]
    v4 = tuple(ip for ip in usable if isinstance(ip, IPv4Address))
    v6 = tuple(ip for ip in usable if isinstance(ip, IPv6Address))
    return Addresses(v4[:MAX_ADDRESSES], v6[:MAX_ADDRESSES])


def _parents(hosts: Mapping[bytes, Addresses], zone_wire: bytes) -> set[bytes]:
    parents: set[bytes] = set()
    for name in hosts:
        parent = name[1 + name[0] :]
        while len(parent) > len(zone_wire) and parent.endswith(zone_wire) and parent not in parents:
            if parent not in hosts:
                parents.add(parent)
            parent = parent[1 + parent[0] :]
    return parents
