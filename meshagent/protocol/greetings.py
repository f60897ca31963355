"""First requests of clients that come back, read once for all that say the same.

A thousand agents that lost their hub come back with the same thousand names and versions of each type, byte for byte:
maps are serialised in order (``transport.methods.serialize``). Taking one such request apart costs a millisecond.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest

from meshagent.protocol.types import MAX_NAMES, ProtocolError
from meshagent.protocol.watch import checked_names

__all__ = ["Greeting", "Greetings", "greeting"]

#: Shorter requests are cheap, longer ones would keep too much (4,000 endpoint sets are 450 KB); so many are kept.
LEAST_BYTES, MOST_BYTES, KEPT = 8 << 10, 512 << 10, 6


@dataclass(frozen=True, slots=True)
class Greeting:
    """``names`` subscribed, and ``versions`` that the client says it holds; shared, so never changed."""

    names: frozenset[str]
    versions: Mapping[str, str]


class Greetings:
    """What the last few big requests were; one for all streams of a server."""

    def __init__(self) -> None:
        self._requests: OrderedDict[bytes, DeltaDiscoveryRequest] = OrderedDict()
        self._read: dict[int, Greeting | None] = {}  # by id of a request that is kept above; None: not read yet

    def parse(self, data: bytes) -> DeltaDiscoveryRequest:
        """The deserialiser of requests; what it returns may be shared and is only read."""
        if not LEAST_BYTES <= len(data) <= MOST_BYTES:
            return DeltaDiscoveryRequest.FromString(data)
        known = self._requests.get(data)
        if known is None:
            known = self._requests[data] = DeltaDiscoveryRequest.FromString(data)
            self._read[id(known)] = None
            if len(self._requests) > KEPT:
                _, oldest = self._requests.popitem(last=False)
                del self._read[id(oldest)]
        else:
            self._requests.move_to_end(data)
        return known

    def greeting(self, request: DeltaDiscoveryRequest) -> Greeting:
        """What it says. Raises ``ProtocolError`` beyond the bounds."""
        found = self._read.get(id(request)) or greeting(request)
        if id(request) in self._read:
            self._read[id(request)] = found
        return found


def greeting(request: DeltaDiscoveryRequest) -> Greeting:
    """Read one request."""
    versions = request.initial_resource_versions
    if len(versions) > MAX_NAMES:
        raise ProtocolError(f"the client claims to hold more than {MAX_NAMES} resources")
    claimed = list(versions)
    held = dict(zip(claimed, map(versions.__getitem__, claimed), strict=True))  # a protobuf map's items() is slow
    if "" in held.values():
        held = {name: version or "?" for name, version in held.items()}
    return Greeting(frozenset(checked_names(request.resource_names_subscribe)), held)
