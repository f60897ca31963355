"""Delta ADS seen from the client, pure; keeps resources and versions over reconnects.

One ``Subscriber`` is one logical session over many streams: ``open`` starts a stream, ``receive`` takes a response
apart, ``accept`` or ``reject`` say what became of it and give the ACK or NACK to send. What is held is only ever
what was accepted; a bad resource rejects only itself. The server may be broken or hostile: whatever it sends ends
in a named ``bad`` entry or a ``ProtocolError`` (close the stream, keep what is held), within bounds.
Source: envoyproxy.io, "xDS REST and gRPC protocol", incremental variant.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from envoy.config.core.v3.base_pb2 import Node
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource

from meshagent.model.errors import MeshagentError
from meshagent.protocol import brief
from meshagent.protocol.entry import Entry, Snapshot
from meshagent.protocol.types import (
    MAX_HELD_BYTES,
    MAX_NAME_BYTES,
    MAX_NAMES,
    MAX_NONCE_BYTES,
    SINGLETON_NAMES,
    WILDCARD,
    ProtocolError,
    short_name,
)

#: google.rpc.Code INVALID_ARGUMENT, and how much of our reasons a NACK carries.
_INVALID_ARGUMENT = 3
_MAX_REASON_CHARS = 4_096

#: Responses taken apart but not yet judged. Callers judge them one after the other: more is a server that floods.
_MAX_UNJUDGED = 256


@dataclass(frozen=True, slots=True)
class Received:
    """One response taken apart. ``bad`` names resources that could not even be read, with the reason.

    ``stream`` counts streams: a verdict on a response of an earlier stream no longer changes anything.
    """

    type_url: str
    nonce: str
    changed: Mapping[str, Entry]
    removed: tuple[str, ...]
    bad: Mapping[str, str]
    stream: int = 0


class Subscriber:
    """One logical session: survives streams; ``resources`` is everything accepted so far, per type.

    ``node``: the ``Node`` message of the first request. ``wildcard``: types asked for as a whole. ``named``: type ->
    names asked for (none yet is fine). Requests go out in the order given, wildcard types first. ``brief_from``: so
    many held resources of a type are told a hub by their digest (``brief``).
    """

    def __init__(
        self,
        node: Node,
        wildcard: Iterable[str],
        named: Mapping[str, Iterable[str]] | None = None,
        *,
        brief_from: int = brief.LEAST,
    ) -> None:
        self.node = node
        self._wanted: dict[str, set[str]] = {type_url: {WILDCARD} for type_url in wildcard}
        for type_url, names in (named or {}).items():
            self._wanted.setdefault(type_url, set()).update(names)
        self._resources: dict[str, Mapping[str, Entry]] = {}
        self._sizes: dict[str, int] = {}  # bytes held per type
        self._unjudged: dict[str, tuple[int, int]] = {}  # nonce -> names and bytes of its resources
        self._opened: set[str] = set()
        self._stream = 0
        self._brief_from = brief_from
        self._understood = False  # the control plane takes a digest, as far as its last stream told
        self._met = False  # it has said something on this stream
        self._brief: set[str] = set()  # types of which it was told a digest on this stream

    @property
    def resources(self) -> Snapshot:
        """Accepted resources. Inner maps are never changed in place. A type is absent until its first answer."""
        return dict(self._resources)

    @property
    def stream(self) -> int:
        """Counts the streams that were opened."""
        return self._stream

    def restore(self, resources: Snapshot) -> None:
        """Begin with what was accepted in an earlier life (last-known-good)."""
        for type_url, entries in resources.items():
            if type_url in self._wanted:
                self._replace(type_url, dict(entries))

    def open(self) -> list[DeltaDiscoveryRequest]:
        """First messages of a new stream (node, subscriptions, initial_resource_versions)."""
        self._stream += 1
        self._unjudged.clear()
        self._opened.clear()
        self._brief.clear()
        self._met = False
        requests = [self._first(type_url) for type_url, names in self._wanted.items() if names]
        if requests:
            requests[0].node.CopyFrom(self.node)
        return requests

    def subscribe(self, type_url: str, names: Iterable[str]) -> list[DeltaDiscoveryRequest]:
        """Ask for ``names`` (or ``*``) too; what to send now. Names asked for already are left out."""
        wanted = self._wanted.setdefault(type_url, set())
        new = set(names) - wanted
        wanted |= new
        if not new or not self._stream:
            return []
        if type_url not in self._opened:
            request = self._first(type_url)
            if len(self._opened) == 1:  # nothing was wanted when the stream was opened
                request.node.CopyFrom(self.node)
            return [request]
        return [DeltaDiscoveryRequest(type_url=type_url, resource_names_subscribe=sorted(new))]

    def unsubscribe(self, type_url: str, names: Iterable[str]) -> list[DeltaDiscoveryRequest]:
        """Ask no longer for ``names`` and drop them, unless the wildcard still covers them; what to send now."""
        wanted = self._wanted.get(type_url, set())
        gone = set(names) & wanted
        wanted -= gone
        if not gone:
            return []
        self._drop(type_url, {name for name in self._resources.get(type_url, {}) if not self._wants(type_url, name)})
        if type_url not in self._opened:
            return []
        return [DeltaDiscoveryRequest(type_url=type_url, resource_names_unsubscribe=sorted(gone))]

    def meet(self, response: DeltaDiscoveryResponse) -> DeltaDiscoveryRequest | None:
        """Look who answers, before ``receive``. A request in return is all that there is to a response that wants one.

        Raises ``MeshagentError`` where another control plane than before has been told a digest, which it takes for
        something else: close the stream, the next one tells it names and versions.
        """
        identifier, type_url = response.control_plane.identifier, response.type_url
        if identifier == brief.IN_FULL:
            if type_url not in self._brief:
                raise ProtocolError(f"the control plane asks what is held of {short_name(type_url)}, and was told")
            self._brief.discard(type_url)
            self._met = self._understood = True
            request = self._first(type_url, in_full=True)
            request.response_nonce = response.nonce
            return request
        if not self._met:
            self._met, self._understood = True, identifier == brief.SPEAKS
            if self._brief and not self._understood:
                raise MeshagentError("other-control-plane", "another control plane answers here than before")
        return None

    def receive(self, response: DeltaDiscoveryResponse) -> Received:
        """Take a response apart; nothing counts as held until ``accept``. Raises ``ProtocolError`` beyond the bounds.

        Resources that were not asked for are ignored, as the protocol demands.
        """
        type_url = response.type_url
        self._check(response)
        changed: dict[str, Entry] = {}
        bad: dict[str, str] = {}
        seen: set[str] = set()
        held = self._resources.get(type_url, {})
        for resource in response.resources:
            name = resource.name or (SINGLETON_NAMES.get(type_url, "") if len(response.resources) == 1 else "")
            reason = _defect(type_url, name, resource) or ("sent twice in one response" if name in seen else "")
            seen.add(name)
            if reason:
                bad[name[:MAX_NAME_BYTES]] = reason
                changed.pop(name, None)
            elif self._wants(type_url, name) and name not in bad and resource.HasField("resource"):
                changed[name] = Entry(resource.version, resource.resource.value)
        for name in seen.intersection(response.removed_resources) - bad.keys():
            bad[name] = "sent and removed in one response"
            changed.pop(name, None)
        removed = tuple(sorted({name for name in response.removed_resources if name and name not in bad}))
        self._bound(type_url, held, changed)
        self._unjudged[response.nonce] = len(changed), sum(len(entry.body) for entry in changed.values())
        return Received(type_url, response.nonce, changed, removed, bad, self._stream)

    def accept(self, received: Received) -> list[DeltaDiscoveryRequest]:
        """All of it is good: hold it, ACK it. (What is named in ``bad`` is NACKed nevertheless.)"""
        return self.reject(received, {})

    def reject(self, received: Received, reasons: Mapping[str, str]) -> list[DeltaDiscoveryRequest]:
        """Hold what ``reasons`` does not name, keep the previous of what it names, NACK with the reasons.

        A response of an earlier stream changes nothing: its server will send what is missing again.
        """
        if received.stream != self._stream or received.nonce not in self._unjudged:
            return []
        del self._unjudged[received.nonce]
        self._hold(received, reasons)
        request = DeltaDiscoveryRequest(type_url=received.type_url, response_nonce=received.nonce)
        reasons = {**received.bad, **reasons}
        if reasons:
            text = "; ".join(f"{name}: {reason}" for name, reason in sorted(reasons.items()))
            request.error_detail.code = _INVALID_ARGUMENT
            request.error_detail.message = text[:_MAX_REASON_CHARS]
        return [request]

    def _first(self, type_url: str, *, in_full: bool = False) -> DeltaDiscoveryRequest:
        """The first request of a type on this stream, with the versions held, or their digest."""
        self._opened.add(type_url)
        held, wanted = self._resources.get(type_url, {}), self._wanted[type_url]
        versions = {name: entry.version for name, entry in held.items()}
        everything = WILDCARD in wanted
        enough = len(held) >= self._brief_from and (everything or held.keys() <= wanted)
        if self._understood and enough and not in_full:
            self._brief.add(type_url)
            wanted = wanted if everything else wanted - held.keys()
            versions = {brief.HELD: brief.digest(versions)}
        return DeltaDiscoveryRequest(
            type_url=type_url, resource_names_subscribe=sorted(wanted), initial_resource_versions=versions
        )

    def _wants(self, type_url: str, name: str) -> bool:
        wanted = self._wanted.get(type_url, ())
        return WILDCARD in wanted or name in wanted

    def _check(self, response: DeltaDiscoveryResponse) -> None:
        if response.type_url not in self._opened:
            raise ProtocolError(f"the control plane sent {short_name(response.type_url)}, which nobody asked for")
        if not response.nonce or len(response.nonce) > MAX_NONCE_BYTES or response.nonce in self._unjudged:
            raise ProtocolError("the control plane sent a response without a usable nonce")
        if max(len(response.resources), len(response.removed_resources)) > MAX_NAMES:
            raise ProtocolError(f"the control plane sent more than {MAX_NAMES} resources at once")
        if len(self._unjudged) >= _MAX_UNJUDGED:
            raise ProtocolError(f"the control plane sent {_MAX_UNJUDGED} responses without waiting for an answer")

    def _bound(self, type_url: str, held: Mapping[str, Entry], changed: Mapping[str, Entry]) -> None:
        names = sum(count for count, _ in self._unjudged.values())
        if len(held) + names + sum(name not in held for name in changed) > MAX_NAMES:
            raise ProtocolError(f"the control plane sent more than {MAX_NAMES} {short_name(type_url)} resources")
        waiting = sum(size for _, size in self._unjudged.values())
        news = sum(len(entry.body) for entry in changed.values())
        if sum(self._sizes.values()) + waiting + news > MAX_HELD_BYTES:
            raise ProtocolError(f"the control plane sent more than {MAX_HELD_BYTES >> 20} MiB of resources")

    def _hold(self, received: Received, reasons: Mapping[str, str]) -> None:
        held = dict(self._resources.get(received.type_url, {}))
        wanted = {n: e for n, e in received.changed.items() if n not in reasons and self._wants(received.type_url, n)}
        held.update(wanted)
        for name in received.removed:
            if name not in reasons:
                held.pop(name, None)
        self._replace(received.type_url, held)

    def _drop(self, type_url: str, names: set[str]) -> None:
        held = self._resources.get(type_url)
        if held is not None and names:
            self._replace(type_url, {name: entry for name, entry in held.items() if name not in names})

    def _replace(self, type_url: str, entries: Mapping[str, Entry]) -> None:
        self._resources[type_url] = entries
        self._sizes[type_url] = sum(len(entry.body) for entry in entries.values())


def _defect(type_url: str, name: str, resource: Resource) -> str:
    """Why a resource cannot be taken, or ''. One without a body only extends a time to live: nothing to take."""
    if not name:
        return "has no name"
    if len(name) > MAX_NAME_BYTES:
        return f"its name is longer than {MAX_NAME_BYTES} characters"
    if resource.HasField("resource") and resource.resource.type_url != type_url:
        return f"is of type {resource.resource.type_url[:100] or '(none)'}"
    if len(resource.version) > MAX_NAME_BYTES:
        return "its version is too long"
    return ""
