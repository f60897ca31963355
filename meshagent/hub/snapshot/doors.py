"""Listeners that a host has only because it asked for them: for its containers, for all that comes in, and for ports
that the mesh wants sorted into mutual TLS and everything else.

They stay when the host asks no more while its proxy runs (the agent sees to that): taking a listener away closes its
connections. Nothing reaches them but by rules in the kernel.
"""

from collections.abc import Iterable, Iterator

from envoy.config.core.v3.base_pb2 import TrafficDirection
from envoy.config.listener.v3.listener_components_pb2 import (
    FilterChain,
    FilterChainMatch,
    ListenerFilter,
    ListenerFilterChainMatchPredicate,
)
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.filters.listener.original_dst.v3.original_dst_pb2 import OriginalDst
from envoy.extensions.filters.listener.original_src.v3.original_src_pb2 import OriginalSrc
from envoy.extensions.filters.listener.tls_inspector.v3.tls_inspector_pb2 import TlsInspector
from envoy.type.v3.range_pb2 import Int32Range
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import BoolValue, UInt32Value

from meshagent.hub.snapshot import naming, own_ports
from meshagent.hub.snapshot.listeners import straight
from meshagent.hub.snapshot.messages import packed, seconds, socket_address
from meshagent.hub.snapshot.view import Scope, SortedPort
from meshagent.model import stats
from meshagent.model.doors import INBOUND_DOORS, PORT_DOORS, Door
from meshagent.model.marks import CLIENT_SOURCE_MARK
from meshagent.model.ports import BRIDGED, INBOUND
from meshagent.model.service import ServiceProtocol

#: Each way in which the kernel hands over what comes in, and what it may be asked for.
_WAYS = ((Door.INBOUND_TPROXY, Door.PORTS_TPROXY), (Door.INBOUND_REDIRECT, Door.PORTS_REDIRECT))

#: How long a port's first bytes are waited for; then it counts as plain text. A client whose server speaks first waits
#: as long for each new connection, a slow one must have sent its ClientHello.
FIRST_BYTES = 3.0
_LOOPBACK = {4: "127.0.0.1", 6: "::1"}
_ANY = {4: "0.0.0.0", 6: "::"}  # noqa: S104 - REDIRECT sends to the address of the interface, whichever that is


def listeners(scope: Scope) -> Iterator[Listener]:
    """What a host has asked for, in each of its families."""
    for family in scope.families:
        if Door.BRIDGES in scope.doors:
            yield _bridges(family)
        for everything, ports in _WAYS:
            if {everything, ports} & scope.doors:
                sorting = scope.ports if ports in scope.doors else ()
                only = everything not in scope.doors
                yield _inbound(everything, family, sorting, scope.trust_domain, only_ports=only)


def passthroughs(scope: Scope) -> frozenset[ServiceProtocol]:
    """The ways of speaking in which what comes in is passed on."""
    if not scope.doors & (INBOUND_DOORS | PORT_DOORS):
        return frozenset()
    return frozenset({ServiceProtocol.TCP, *(port.protocol for port in scope.ports if port.protocol.is_http)})


def _bridges(family: int) -> Listener:
    """As ``virtualOutbound`` for what containers send, which REDIRECT sends to the bridge's address. Not TPROXY: where
    bridges call netfilter (br_netfilter, loaded by docker), the socket it chose is forgotten on the way up.

    Whoever dials this port itself, should no rule be in the way, meets a dead end.
    """
    return Listener(
        name=_name("virtualOutboundBridges", family),
        stat_prefix=stats.OUTBOUND,
        address=socket_address(_ANY[family], BRIDGED),
        use_original_dst=BoolValue(value=True),
        traffic_direction=TrafficDirection.OUTBOUND,
        filter_chains=[FilterChain(filters=[straight(naming.BLACK_HOLE)])],
    )


def _inbound(door: Door, family: int, ports: Iterable[SortedPort], trust_domain: str, *, only_ports: bool) -> Listener:
    """To the process that was dialled, from the caller's own address: plain text as it came, mutual TLS of ``ports``
    without it.

    Connections are not handed to other listeners (no ``use_original_dst``): one for a claimed address of this very
    host would turn a stranger's connection into one of this host's. No filter waits for a first byte but on ``ports``,
    so servers that speak first do. Whoever dials this port itself meets a dead end.

    With ``only_ports`` nothing else comes in here, so that which ports they are is no part of the filters: a listener
    whose filters change is replaced as a whole.
    """
    transparent = door is Door.INBOUND_TPROXY
    ports = tuple(ports)
    made = Listener(
        name=_name("virtualInbound" if transparent else "virtualInboundRedirect", family),
        stat_prefix=stats.INBOUND,
        address=socket_address((_LOOPBACK if transparent else _ANY)[family], INBOUND),
        transparent=BoolValue(value=transparent),
        traffic_direction=TrafficDirection.INBOUND,
        listener_filters=[
            _filter("original_dst", OriginalDst()),
            _filter("original_src", OriginalSrc(mark=CLIENT_SOURCE_MARK)),
        ],
        filter_chains=[
            FilterChain(
                filter_chain_match=FilterChainMatch(destination_port=UInt32Value(value=INBOUND)),
                filters=[straight(naming.BLACK_HOLE)],
            ),
            *(chain for port in ports for chain in own_ports.chains(port, trust_domain)),
        ],
        default_filter_chain=FilterChain(filters=[straight(naming.INBOUND_PASSTHROUGH)]),
    )
    if ports or only_ports:
        inspector = _filter("tls_inspector", TlsInspector())
        if not only_ports:
            inspector.filter_disabled.CopyFrom(_no_port_of(ports))
        made.listener_filters.append(inspector)
        made.listener_filters_timeout.CopyFrom(seconds(FIRST_BYTES))
        made.continue_on_listener_filters_timeout = True
    return made


def _no_port_of(ports: Iterable[SortedPort]) -> ListenerFilterChainMatchPredicate:
    """True for connections to any other port."""
    ranges = [Int32Range(start=port.port, end=port.port + 1) for port in ports]  # end is exclusive
    each = [ListenerFilterChainMatchPredicate(destination_port_range=found) for found in ranges]
    if len(each) == 1:  # a set of rules has two at least
        return ListenerFilterChainMatchPredicate(not_match=each[0])
    either = ListenerFilterChainMatchPredicate.MatchSet(rules=each)
    return ListenerFilterChainMatchPredicate(not_match=ListenerFilterChainMatchPredicate(or_match=either))


def _filter(name: str, config: Message) -> ListenerFilter:
    return ListenerFilter(name=f"envoy.filters.listener.{name}", typed_config=packed(config))


def _name(name: str, family: int) -> str:
    return name if family == 4 else f"{name}6"
