"""What other parts of the agent follow in the configuration that passes: names, captured addresses, doors, port policy.

All of it comes from another machine, so all of it is checked and bounded here; one bad entry is left out alone.
"""

from collections.abc import Iterable, Mapping

from envoy.config.core.v3.address_pb2 import SocketAddress
from envoy.config.core.v3.base_pb2 import INBOUND, OUTBOUND
from envoy.config.listener.v3.listener_components_pb2 import FilterChain
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.filters.network.tcp_proxy.v3.tcp_proxy_pb2 import TcpProxy
from google.protobuf.message import DecodeError

from meshagent.model.address import IPAddress, MeshAddress, parse_ip
from meshagent.model.doors import BLACK_HOLE_CLUSTER, PASSTHROUGH_CLUSTER, Door, OpenDoor, PortDoor
from meshagent.model.names import NameEntry, NameTable, is_dns_name
from meshagent.model.policy import HostPolicy, RedirectReason
from meshagent.model.ports import BRIDGED
from meshagent.model.ports import INBOUND as INBOUND_PORT
from meshagent.model.ports import OUTBOUND as GATE
from meshagent.model.posture import PlaintextMode
from meshagent.protocol.entry import Entry
from meshagent.protocol.pb.istio_nds_pb2 import NameTable as NameTableMessage
from meshagent.protocol.pb.meshagent_v1_pb2 import HostPolicy as HostPolicyMessage
from meshagent.protocol.types import HOST_POLICY, LDS, NDS
from meshagent.runtime.latest import Latest

#: Types that say something to others.
TAPPED = (LDS, NDS, HOST_POLICY)

#: How a listener filter is told that it waits for a connection's first bytes.
_WAITS = "tls_inspector"

#: A mesh of 10,000 services has three names each.
MAX_HOSTS = 100_000
MAX_ADDRESSES_PER_HOST = 256
MAX_PORTS = 4_096

#: What one listener means to others.
_Found = tuple[MeshAddress, ...] | frozenset[OpenDoor | PortDoor]

_REASONS = {HostPolicyMessage.REDIRECT_MUTUAL_TLS: RedirectReason.MUTUAL_TLS}


class Taps:
    """The values, as ``Latest``; they keep their last content when something can't be read.

    ``gate``: the port on loopback where captured connections arrive. Without a listener there, whoever else holds the
    port would get them, so addresses of a family count only while its gate is in use; the others are ``unserved``.
    """

    def __init__(self, gate: int = GATE) -> None:
        self.names: Latest[NameTable] = Latest(NameTable(known=False))
        self.addresses: Latest[frozenset[MeshAddress]] = Latest(frozenset())
        self.unserved: Latest[frozenset[MeshAddress]] = Latest(frozenset())
        self.policy: Latest[HostPolicy] = Latest(HostPolicy())
        self._gate = gate
        self.doors: Latest[frozenset[OpenDoor]] = Latest(frozenset())
        self.ports: Latest[frozenset[PortDoor]] = Latest(frozenset())
        self._listeners: dict[str, tuple[Entry, _Found]] = {}
        self._ahead: dict[str, tuple[Entry, _Found]] = {}

    def take(self, type_url: str, used: Mapping[str, Entry]) -> None:
        """The resources of one type that are in use now."""
        if type_url == LDS:
            self._read_listeners(used)
        elif type_url == NDS:
            self.names.set(name_table(entry.body for entry in used.values()))
        elif type_url == HOST_POLICY:
            self.policy.set(host_policy(entry.body for entry in used.values()))

    def _read_listeners(self, used: Mapping[str, Entry]) -> None:
        """Reads only listeners that changed: with 1,000 services an update of one costs one parse."""
        known = self._listeners
        self._listeners = {
            name: known[name] if name in known and known[name][0] is entry else self._taken(name, entry)
            for name, entry in used.items()
        }
        found = [what for _, what in self._listeners.values()]
        every = [door for what in found if isinstance(what, frozenset) for door in what]
        doors = frozenset(door for door in every if not isinstance(door, PortDoor))
        self.doors.set(doors)
        self.ports.set(frozenset(door for door in every if isinstance(door, PortDoor)))
        addresses = frozenset(address for what in found if isinstance(what, tuple) for address in what)
        served = frozenset(what for what in addresses if (Door.OUTBOUND, what.ip.version) in doors)
        self.unserved.set(addresses - served)
        self.addresses.set(served)

    def read_ahead(self, listeners: Mapping[str, Entry]) -> None:
        """Read listeners that will be in use soon; in any thread.

        When Envoy has taken 1,000 services everybody waits for it, and reading 1,000 listeners takes 20 ms.
        """
        self._ahead = {name: (entry, self._read(entry.body)) for name, entry in listeners.items()}

    def _taken(self, name: str, entry: Entry) -> tuple[Entry, _Found]:
        ahead = self._ahead.pop(name, None)
        return ahead if ahead is not None and ahead[0] is entry else (entry, self._read(entry.body))

    def _read(self, body: bytes) -> _Found:
        """The mesh addresses that a listener serves, or the doors that it is."""
        try:
            listener = Listener.FromString(body)
        except DecodeError:
            return ()
        return mesh_addresses(listener) or doors_of(listener, self._gate)


def doors_of(listener: Listener, gate: int = GATE) -> frozenset[OpenDoor | PortDoor]:
    """What a bound listener takes in, for which IP version."""
    if version := gate_of(listener, gate):
        passes_on = _cluster(listener.default_filter_chain) == PASSTHROUGH_CLUSTER
        return frozenset({(Door.OUTBOUND, version), *([(Door.PASSTHROUGH, version)] if passes_on else ())})
    if version := gate_of(listener, BRIDGED):
        return frozenset({(Door.BRIDGES, version)})
    return _inbound_doors(listener)


def _inbound_doors(listener: Listener) -> frozenset[OpenDoor | PortDoor]:
    """REDIRECT sends to the address of the interface, so a listener for it is on any address.

    One that waits for the first bytes of whatever comes in is for the ports alone that are sorted by them.
    """
    socket = listener.address.socket_address
    ip = parse_ip(socket.address)
    if ip is None or (listener.traffic_direction, socket.port_value) != (INBOUND, INBOUND_PORT):
        return frozenset()
    if not (ip.is_unspecified or (ip.is_loopback and listener.transparent.value)):
        return frozenset()
    everything, some = (Door.INBOUND_REDIRECT, Door.PORTS_REDIRECT)
    if listener.transparent.value:
        everything, some = (Door.INBOUND_TPROXY, Door.PORTS_TPROXY)
    waits = [each for each in listener.listener_filters if each.name.endswith(_WAITS)]
    doors: set[OpenDoor | PortDoor] = set()
    if not waits or all(each.HasField("filter_disabled") for each in waits):
        doors.add((everything, ip.version))
    if waits:
        doors.add((some, ip.version))
        doors.update(_port_doors(listener, some, ip.version))
    return frozenset(doors)


def _port_doors(listener: Listener, door: Door, family: int) -> Iterable[PortDoor]:
    """The ports with a chain that ends TLS. One is closed to everything else where both other TLS and plain text have a
    chain that leads nowhere: what has no chain goes by the default one."""
    ends_tls: set[int] = set()
    nowhere: set[tuple[int, str]] = set()
    for chain in listener.filter_chains[: 3 * MAX_PORTS]:
        match = chain.filter_chain_match
        port = match.destination_port.value
        if chain.HasField("transport_socket"):
            ends_tls.add(port)
        elif _cluster(chain) == BLACK_HOLE_CLUSTER:
            nowhere.add((port, match.transport_protocol))
    known = (port for port in ends_tls if 1 <= port <= 65535)
    return (PortDoor(door, family, port, not {(port, ""), (port, "tls")} <= nowhere) for port in known)


def _cluster(chain: FilterChain) -> str:
    """The cluster to which a chain hands plain TCP, or ''."""
    proxy = TcpProxy()
    for each in chain.filters:
        if each.typed_config.Is(TcpProxy.DESCRIPTOR) and each.typed_config.Unpack(proxy):
            return str(proxy.cluster)
    return ""


def gate_of(listener: Listener, port: int = GATE) -> int:
    """4 or 6 of a listener that receives what the kernel redirects to ``port``; 0 for every other one."""
    socket = listener.address.socket_address
    ip = parse_ip(socket.address)
    if ip is None or socket.port_value != port or not listener.use_original_dst.value:
        return 0
    return ip.version if ip.is_loopback or ip.is_unspecified else 0


def mesh_addresses(listener: Listener) -> tuple[MeshAddress, ...]:
    """Each address:port that a non-bound OUTBOUND listener serves; none for every other listener."""
    if listener.traffic_direction != OUTBOUND or not listener.HasField("bind_to_port") or listener.bind_to_port.value:
        return ()
    others = (each.address for each in listener.additional_addresses[:MAX_ADDRESSES_PER_HOST])
    found = (_mesh_address(each.socket_address) for each in (listener.address, *others))
    return tuple(address for address in found if address is not None)


def _mesh_address(socket: SocketAddress) -> MeshAddress | None:
    ip = parse_ip(socket.address)
    if ip is None or not 1 <= socket.port_value <= 65535 or not _can_be_captured(ip):
        return None
    return MeshAddress(ip, socket.port_value)


def name_table(bodies: Iterable[bytes]) -> NameTable:
    """Host names (lower case) with at least one valid address."""
    entries: dict[str, NameEntry] = {}
    for body in bodies:
        try:
            message = NameTableMessage.FromString(body)
        except DecodeError:
            continue
        for host, info in message.table.items():
            if len(entries) >= MAX_HOSTS:
                return NameTable(entries)
            name, addresses = host.rstrip(".").lower(), _ips(info.ips)
            if addresses and is_dns_name(name):
                entries[name] = NameEntry(addresses, info.registry, info.shortname, info.namespace)
    return NameTable(entries)


def host_policy(bodies: Iterable[bytes]) -> HostPolicy:
    """What is said of each port; where two resources name a port, strict wins, and so does a reason to redirect."""
    modes: dict[int, PlaintextMode] = {}
    reasons: dict[int, RedirectReason] = {}
    for body in bodies:
        try:
            message = HostPolicyMessage.FromString(body)
        except DecodeError:
            continue
        for port in message.ports[:MAX_PORTS]:
            if not 1 <= port.port <= 65535:
                continue
            if modes.get(port.port) is not PlaintextMode.STRICT:
                modes[port.port] = PlaintextMode.STRICT if port.strict else PlaintextMode.PERMISSIVE
            if port.redirect in _REASONS:  # a newer hub may know more
                reasons[port.port] = _REASONS[port.redirect]
    return HostPolicy(modes, reasons)


def _ips(texts: Iterable[str]) -> tuple[IPAddress, ...]:
    found = (parse_ip(text) for text in list(texts)[:MAX_ADDRESSES_PER_HOST])
    return tuple(ip for ip in found if ip is not None)


def _can_be_captured(ip: IPAddress) -> bool:
    """Nobody may have us redirect loopback, unspecified, multicast or link-local addresses (cloud metadata)."""
    return not (ip.is_loopback or ip.is_unspecified or ip.is_multicast or ip.is_link_local)
