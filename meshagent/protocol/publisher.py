"""One delta-ADS stream seen from the server, pure: requests and snapshots in, responses and verdicts out.

The idea: keep what the client has (or is about to have) per type, compare it with what the snapshot says it should
have, send the difference. Whatever happened — an update, a new subscription, a reconnect that brought
``initial_resource_versions``, an ACK that made room — leads to the same comparison, so nothing is queued and a slow
client gets the newest state, not the history.

``whole``: a snapshot is told to its end before the next one begins. A client asks for endpoints by name once it has
heard of their cluster; had the snapshot moved on by then, it would hold a listener to a cluster without endpoints.
Where nothing but endpoints, names or policies changed their answers needn't be waited for: nobody asks for more
because of them, and a service that fails over twice in a moment is where it is at once.

A NACK changes nothing here: the refused version stays recorded as sent, so it is not sent again until its content
differs. The hub uses this towards agents, the agent towards its Envoy.
Source: envoyproxy.io, "xDS REST and gRPC protocol", incremental variant.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse

from meshagent.protocol import brief
from meshagent.protocol.entry import Entry, Snapshot, digest_of, names_of, versions_of
from meshagent.protocol.greetings import Greetings
from meshagent.protocol.types import CDS, CHAIN, EDS, MAX_TYPES, REMOVE_LAST, WILDCARD, ProtocolError, publish_rank
from meshagent.protocol.watch import ABSENT, Watch, checked_names, first_watch

__all__ = ["Entry", "Publisher", "Reaction", "Snapshot", "Verdict"]

#: One response holds at most this many bytes of resources (one bigger resource goes alone), so that neither end
#: buffers a whole mesh at once; 1 MiB is about 2,000 endpoint sets.
MAX_RESPONSE_BYTES = 1 << 20
MAX_RESPONSE_NAMES = 5_000

#: Unanswered responses per group of types. A client that stops answering costs this much and no more; when it
#: answers again it gets the difference to the newest snapshot. Endpoints have a window of their own: clusters are
#: answered when their endpoints have come, so endpoints that wait for those answers would wait for ever.
WINDOW = 16

#: Requests of one type that may come while the client is asked what it holds; ours sends one or two.
_MAX_EARLY = 64


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the client said of one response. ``error`` empty = ACK.

    ``resources`` name -> version as sent, ``removed`` names. Of a refused response a client may have taken the
    resources that ``error`` does not name.
    """

    type_url: str
    nonce: str
    resources: Mapping[str, str]
    removed: tuple[str, ...]
    error: str = ""


@dataclass(frozen=True, slots=True)
class Reaction:
    """What one input led to: responses to send now, in order, and the client's verdicts heard."""

    responses: tuple[DeltaDiscoveryResponse, ...] = ()
    verdicts: tuple[Verdict, ...] = ()


@dataclass(slots=True)
class _Question:
    """The client was asked what it holds of a type; ``early``: what it sent before it answered."""

    nonce: str
    early: list[DeltaDiscoveryRequest] = field(default_factory=list)


@dataclass(slots=True)
class Publisher:
    """State of one stream: what the client subscribed to and which versions it has.

    ``forgetful``: the client is an Envoy (1.40 seen): it uses the good resources of a response it refuses, but does
    not count new ones among what it holds, and after a reconnect would never hear that they are gone. So what was
    good in a refused response is sent again without what was bad.

    ``whole``: see above; for a client that answers only when it is through. Not for the relay's Envoy: what the relay
    publishes are steps, and Envoy answers one (a cluster) when it has got the next (its endpoints).

    ``greetings``: those of the server whose streams these are.
    """

    snapshot: Snapshot = field(default_factory=dict)
    forgetful: bool = False
    whole: bool = False
    greetings: Greetings = field(default_factory=Greetings)
    _newest: Snapshot | None = None
    _watches: dict[str, Watch] = field(default_factory=dict)
    _pending: dict[str, Verdict] = field(default_factory=dict)  # nonce -> what was sent, as if ACKed
    _asked: dict[str, "_Question"] = field(default_factory=dict)  # type -> what the client holds of it
    _nonce: int = 0

    def on_request(self, request: DeltaDiscoveryRequest) -> Reaction:
        """A message from the client (subscription, ACK or NACK). Raises ``ProtocolError`` beyond the bounds."""
        verdict = self._verdict(request)
        question = self._subscribe(request)
        return Reaction((*question, *self._proceed()), (verdict,) if verdict else ())

    def on_snapshot(self, snapshot: Snapshot) -> Reaction:
        """The desired state changed: difference to what the client has, in make-before-break order."""
        self._newest = snapshot
        return Reaction(tuple(self._proceed()))

    @property
    def settled(self) -> bool:
        """True when the client has answered everything and nothing is left to send."""
        return self._newest is None and not self._pending and not self._asked and not self._dirty

    def subscription(self, type_url: str) -> tuple[bool, frozenset[str]]:
        """(wildcard, names) the client asked for: what a relay has to ask for upstream."""
        watch = self._watches.get(type_url)
        return (watch.wildcard, frozenset(watch.names)) if watch else (False, frozenset())

    # what the client said

    def _verdict(self, request: DeltaDiscoveryRequest) -> Verdict | None:
        """The verdict that a nonce brings; a stale or foreign nonce says nothing, its subscriptions still count."""
        sent = self._pending.get(request.response_nonce)
        if sent is None or sent.type_url != request.type_url:
            return None
        del self._pending[request.response_nonce]
        if not request.HasField("error_detail"):
            return sent
        detail = request.error_detail
        error = detail.message or f"refused with code {detail.code}"
        if self.forgetful:
            self._watches[sent.type_url].separate(sent.resources, error)
        return replace(sent, error=error)

    def _subscribe(self, request: DeltaDiscoveryRequest) -> tuple[DeltaDiscoveryResponse, ...]:
        """What has to be asked before it can be answered, if anything."""
        type_url = request.type_url
        if (watch := self._watches.get(type_url)) is not None:
            watch.subscribe(request.resource_names_subscribe, request.resource_names_unsubscribe)
            return ()
        if (question := self._asked.get(type_url)) is not None:
            self._answered(question, request)
            return ()
        if not type_url or len(self._watches) + len(self._asked) >= MAX_TYPES:
            raise ProtocolError("too many resource types" if type_url else "a request without a type URL")
        held = "" if self.forgetful else brief.said(request)
        if held and (type_url not in self.snapshot or digest_of(self.snapshot[type_url]) != held):
            self._nonce += 1
            self._asked[type_url] = _Question(str(self._nonce))
            response = DeltaDiscoveryResponse(type_url=type_url, nonce=str(self._nonce))
            response.control_plane.identifier = brief.IN_FULL
            return (response,)
        self._watches[type_url] = self._as_held(request) if held else self._first(request)
        return ()

    def _first(self, request: DeltaDiscoveryRequest) -> Watch:
        said = self.greetings.greeting(request)
        return first_watch(request.type_url, said.names, request.resource_names_unsubscribe, said.versions)

    def _as_held(self, request: DeltaDiscoveryRequest) -> Watch:
        """The client has just what there is; it subscribes to it without saying so, unless it wants everything."""
        entries = self.snapshot[request.type_url]
        wanted = frozenset(checked_names(request.resource_names_subscribe))
        if WILDCARD not in wanted:
            wanted = wanted | names_of(entries) if wanted else names_of(entries)
        return first_watch(request.type_url, wanted, request.resource_names_unsubscribe, versions_of(entries))

    def _answered(self, question: "_Question", request: DeltaDiscoveryRequest) -> None:
        """What is held is told now; whatever else came meanwhile counts after it."""
        if request.response_nonce != question.nonce:
            if len(question.early) >= _MAX_EARLY:
                raise ProtocolError("many requests, and none that says what is held")
            question.early.append(request)
            return
        del self._asked[request.type_url]
        watch = self._watches[request.type_url] = self._first(request)
        for each in question.early:
            watch.subscribe(each.resource_names_subscribe, each.resource_names_unsubscribe)

    # what it gets

    @property
    def _dirty(self) -> bool:
        """The client has not heard of all that the snapshot holds for it."""
        return any(w.dirty for t, w in self._watches.items() if t in self.snapshot)

    def _may_begin(self, newest: Snapshot) -> bool:
        """What is told now is told to its end, as far as ``newest`` needs it."""
        if self._dirty:
            return False
        leaves = all(newest.get(t) is self.snapshot.get(t) for t in CHAIN - {EDS})
        waits = CHAIN - {EDS} if leaves else frozenset(self._watches)
        return not any(sent.type_url in waits for sent in self._pending.values())

    def _proceed(self) -> Iterator[DeltaDiscoveryResponse]:
        """On with the snapshot at hand; with the newest one as soon as that may begin."""
        if self.whole:
            yield from self._pump()
        if self._newest is not None and (not self.whole or self._may_begin(self._newest)):
            self.snapshot, self._newest = self._newest, None
            for type_url, watch in self._watches.items():
                if self.snapshot.get(type_url) is not watch.compared:
                    watch.dirty = True
        yield from self._pump()

    def _pump(self) -> Iterator[DeltaDiscoveryResponse]:
        """Additions in publish order, then the removals that come last; a group stops where its window is full."""
        if not any(watch.dirty for watch in self._watches.values()):
            return
        types = sorted((t for t in self._watches if t in self.snapshot), key=publish_rank)
        full: set[str] = set()
        for type_url in types:
            if self._watches[type_url].dirty and not full & _before(type_url):
                yield from self._additions(type_url, full)
        for type_url in sorted(types, key=_removal_rank):
            if self._watches[type_url].dirty and not full & _around(type_url):
                yield from self._finish(type_url, full)

    def _additions(self, type_url: str, full: set[str]) -> Iterator[DeltaDiscoveryResponse]:
        watch, entries = self._watches[type_url], self.snapshot[type_url]
        removed = watch.removed(entries)
        if type_url in REMOVE_LAST:  # but at once what never was: somebody waits for it
            removed = [name for name in removed if name not in watch.held]
        yield from self._send(type_url, watch.changed(entries), removed, full)

    def _finish(self, type_url: str, full: set[str]) -> Iterator[DeltaDiscoveryResponse]:
        """What is left of a type: its late removals, and the empty answer that a first request waits for."""
        watch, entries = self._watches[type_url], self.snapshot[type_url]
        yield from self._send(type_url, [], watch.removed(entries), full)
        if full & _around(type_url):
            return
        if not watch.greeted:
            yield self._response(type_url, [], [])
        watch.told(entries)

    def _send(
        self, type_url: str, changed: Sequence[str], removed: Sequence[str], full: set[str]
    ) -> Iterator[DeltaDiscoveryResponse]:
        parts = self._watches[type_url].parts
        for some_changed, some_removed in _portions(self.snapshot[type_url], changed, removed, dict(parts)):
            if self._in_flight(type_url) >= WINDOW:
                full.add(_group(type_url))
                return
            if type_url == CDS:
                self._rewarm(some_changed)
            yield self._response(type_url, some_changed, some_removed)

    def _in_flight(self, type_url: str) -> int:
        return sum(_group(sent.type_url) == _group(type_url) for sent in self._pending.values())

    def _rewarm(self, clusters: Sequence[str]) -> None:
        """A cluster that changes warms anew and waits for its endpoints, which Envoy does not ask for again."""
        held, endpoints = self._watches[CDS].held, self._watches.get(EDS)
        for name in clusters:
            if endpoints and held.get(name) not in (None, ABSENT):
                endpoints.whole = True
                if endpoints.held.drop(name) not in (None, ABSENT):
                    endpoints.dirty = True

    def _response(self, type_url: str, changed: Sequence[str], removed: Sequence[str]) -> DeltaDiscoveryResponse:
        entries, watch = self.snapshot[type_url], self._watches[type_url]
        self._nonce += 1
        response = DeltaDiscoveryResponse(type_url=type_url, nonce=str(self._nonce), removed_resources=removed)
        if self._nonce == 1 and not self.forgetful:
            response.control_plane.identifier = brief.SPEAKS
        for name in changed:
            resource = response.resources.add(name=name, version=entries[name].version)
            resource.resource.type_url = type_url
            resource.resource.value = entries[name].body
        versions = {name: entries[name].version for name in changed}
        watch.sent(versions, removed)
        watch.greeted = True
        self._pending[response.nonce] = Verdict(type_url, response.nonce, versions, tuple(removed))
        return response


def _group(type_url: str) -> str:
    """Types that share one window."""
    return CDS if type_url in CHAIN and type_url != EDS else type_url


def _before(type_url: str) -> frozenset[str]:
    """Groups whose full window stops additions: what refers to others doesn't overtake them."""
    return frozenset({type_url}) if type_url == EDS else _around(type_url)


def _around(type_url: str) -> frozenset[str]:
    """Groups whose full window stops removals: of clusters and endpoints too, while something may still use them."""
    return frozenset({CDS, EDS}) if type_url in CHAIN else frozenset({type_url})


def _removal_rank(type_url: str) -> int:
    return REMOVE_LAST.index(type_url) if type_url in REMOVE_LAST else -1


def _portions(
    entries: Mapping[str, Entry], changed: Sequence[str], removed: Sequence[str], parts: Mapping[str, int]
) -> Iterator[tuple[list[str], list[str]]]:
    """Cut one difference into bounded responses; removals ride on the last portion of additions."""
    portion: list[str] = []
    size = 0
    for name in changed:
        weight = len(name) + len(entries[name].body) + 100  # 100: field tags, version, type URL
        full = size + weight > MAX_RESPONSE_BYTES or len(portion) >= MAX_RESPONSE_NAMES
        if portion and (full or parts.get(name, 0) != parts.get(portion[-1], 0)):
            yield portion, []
            portion, size = [], 0
        portion.append(name)
        size += weight
    head = MAX_RESPONSE_NAMES - len(portion) if removed else 0
    if portion or removed:
        yield portion, list(removed[:head])
    for start in range(head, len(removed), MAX_RESPONSE_NAMES):
        yield [], list(removed[start : start + MAX_RESPONSE_NAMES])
