"""Listeners that a host has only because it asked for them: for its containers, and for all that comes in.

They stay when the host asks no more while its proxy runs (the agent sees to that): taking a listener away closes its
connections. Nothing reaches them but by rules in the kernel.
"""

from envoy.config.core.v3.base_pb2 import TrafficDirection
from envoy.config.listener.v3.listener_components_pb2 import FilterChain, FilterChainMatch, ListenerFilter
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.filters.listener.original_dst.v3.original_dst_pb2 import OriginalDst
from envoy.extensions.filters.listener.original_src.v3.original_src_pb2 import OriginalSrc
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import BoolValue, UInt32Value

from meshagent.hub.snapshot import naming
from meshagent.hub.snapshot.listeners import straight
from meshagent.hub.snapshot.messages import packed, socket_address
from meshagent.model.doors import Door
from meshagent.model.marks import CLIENT_SOURCE_MARK
from meshagent.model.ports import BRIDGED, INBOUND

INBOUND_DOORS = frozenset({Door.INBOUND_TPROXY, Door.INBOUND_REDIRECT})
_LOOPBACK = {4: "127.0.0.1", 6: "::1"}
_ANY = {4: "0.0.0.0", 6: "::"}  # noqa: S104 - REDIRECT sends to the address of the interface, whichever that is


def listener(door: Door, family: int) -> Listener:
    """The listener of one of ``ON_REQUEST`` for one family, each with a name of its own."""
    return _bridges(family) if door is Door.BRIDGES else _inbound(door, family)


def _bridges(family: int) -> Listener:
    """As ``virtualOutbound`` for what containers send, which REDIRECT sends to the bridge's address. Not TPROXY: where
    bridges call netfilter (br_netfilter, loaded by docker), the socket it chose is forgotten on the way up.

    Whoever dials this port itself, should no rule be in the way, meets a dead end.
    """
    return Listener(
        name=_name("virtualOutboundBridges", family),
        address=socket_address(_ANY[family], BRIDGED),
        use_original_dst=BoolValue(value=True),
        traffic_direction=TrafficDirection.OUTBOUND,
        filter_chains=[FilterChain(filters=[straight(naming.BLACK_HOLE)])],
    )


def _inbound(door: Door, family: int) -> Listener:
    """Plain text as it came, to the process that was dialled, from the caller's own address.

    Connections are not handed to other listeners (no ``use_original_dst``): one for a claimed address of this very
    host would turn a stranger's connection into one of this host's. No filter waits for a first byte, so servers that
    speak first do. Whoever dials this port itself meets a dead end.
    """
    transparent = door is Door.INBOUND_TPROXY
    return Listener(
        name=_name("virtualInbound" if transparent else "virtualInboundRedirect", family),
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
            )
        ],
        default_filter_chain=FilterChain(filters=[straight(naming.INBOUND_PASSTHROUGH)]),
    )


def _filter(name: str, config: Message) -> ListenerFilter:
    return ListenerFilter(name=f"envoy.filters.listener.{name}", typed_config=packed(config))


def _name(name: str, family: int) -> str:
    return name if family == 4 else f"{name}6"
