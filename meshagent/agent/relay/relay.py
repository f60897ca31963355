"""The relay's heart: offers from the control plane in, a snapshot for Envoy and a verdict for the control plane out.

Nothing here opens a socket. ``offer`` is called with every response of the control plane and answers, when Envoy has
judged it, which resources were refused. Offers wait for each other only as far as make-before-break needs it:
listeners and routes for the clusters and endpoints before them (Envoy ACKs clusters only once they are warm), clusters
that are removed for the listeners before them, names and policies for everything before them. Every wait is bounded:
a proxy that is slow, gone or silent never blocks the session; its verdict then comes later and counts all the same.

A proxy that connects with what it holds has at least what is on disk here, often more (the disk is written behind, or
was lost). So until the control plane has spoken of a type in this life of the agent, such a proxy is told nothing.
"""

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from meshagent.agent.relay.adapt import Adapter, identity
from meshagent.agent.relay.cache import Cache
from meshagent.agent.relay.checks import defect
from meshagent.agent.relay.ledger import Ledger
from meshagent.agent.relay.nack import is_port_taken
from meshagent.agent.relay.references import REFERS_TO, References
from meshagent.agent.relay.rejections import Rejections
from meshagent.agent.relay.taps import TAPPED, Taps
from meshagent.model.condition import ConditionSink
from meshagent.model.ports import OUTBOUND as GATE
from meshagent.protocol.entry import Entry, Snapshot
from meshagent.protocol.publisher import Verdict
from meshagent.protocol.subscriber import Received
from meshagent.protocol.types import CDS, EDS, HOST_POLICY, LDS, NDS, RDS, short_name
from meshagent.runtime.latest import Latest

ENVOY_TYPES = (CDS, EDS, LDS, RDS)
OWN_TYPES = (NDS, HOST_POLICY)

#: How long an offer waits for Envoy or for what must come first. Warming 1,000 clusters took 0.4 s.
PATIENCE = 5.0


@dataclass(slots=True)
class _Turn:
    """One offer in the queue."""

    type_url: str
    removes: bool
    applied: asyncio.Event = field(default_factory=asyncio.Event)
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def must_finish_first(self, earlier: "_Turn") -> bool:
        """Whether this offer may only be applied when Envoy has judged the earlier one."""
        if self.type_url == CDS:
            return self.removes and earlier.type_url in (LDS, RDS)
        if self.type_url in (LDS, RDS):
            return earlier.type_url in (CDS, EDS)
        return self.type_url in OWN_TYPES and earlier.type_url in ENVOY_TYPES


class Relay:
    """See the module. ``snapshot`` is what Envoy should have, ``wanted`` what to ask the control plane for by name.

    ``settled``: types of which the control plane has spoken in this life and on all of which Envoy has an opinion.
    ``unbound``: listeners that Envoy can't bind because their port is taken, with its reason.
    """

    def __init__(
        self,
        cache: Cache,
        conditions: ConditionSink,
        *,
        adapt: Adapter = identity,
        patience: float = PATIENCE,
        gate: int = GATE,
    ) -> None:
        self.snapshot: Latest[Snapshot] = Latest({})
        self.wanted: Latest[Mapping[str, frozenset[str]]] = Latest({EDS: frozenset(), RDS: frozenset()})
        self.settled: Latest[frozenset[str]] = Latest(frozenset())
        self.unbound: Latest[Mapping[str, str]] = Latest({})
        self.taps = Taps(gate)
        self._cache = cache
        self._adapt = adapt
        self._patience = patience
        self._ledgers = {type_url: Ledger(type_url) for type_url in (*ENVOY_TYPES, *OWN_TYPES)}
        self._references = References()
        self._absent: set[str] = set()  # endpoint sets of which the control plane said that there are none
        self._queue: list[_Turn] = []
        self._progress: Latest[int] = Latest(0)  # counts verdicts, and streams that come and go
        self._asked: Latest[frozenset[str]] = Latest(frozenset())
        self._streams: list[int] = []  # open ones of Envoy, oldest first
        self._equipped = False  # the newest stream came with resources that Envoy holds already
        self._unreadable: dict[str, dict[str, str]] = {}  # type -> name -> why Envoy never saw it
        self._rejections = Rejections(conditions)
        self._adapted: dict[str, dict[str, tuple[Entry, Entry]]] = {}

    def restore(self) -> Snapshot:
        """Take what the cache holds; returns it for the subscriber to begin with. Empty when there is none.

        It is served from here on; ``follow`` reads it."""
        snapshot = self._cache.load()
        for type_url, entries in snapshot.items():
            if type_url in self._ledgers:
                self._ledgers[type_url].restore(entries)
        self._publish()
        return {type_url: entries for type_url, entries in snapshot.items() if type_url in self._ledgers}

    async def follow(self) -> None:
        """Read what was restored: the names to ask for, and what it says to others. 25 ms with 1,000 services, in
        pieces: the proxy that waits for it is answered in between."""
        for type_url in (*ENVOY_TYPES, *OWN_TYPES):
            self._follow(type_url)
            await asyncio.sleep(0)

    async def run(self) -> None:
        """Writes the cache behind changes, until cancelled."""
        await self._cache.run()

    # --- from the control plane

    async def offer(self, received: Received) -> Mapping[str, str]:
        """Put a response to Envoy; returns refused names with reasons when it has judged, empty when all is well."""
        turn = _Turn(received.type_url, bool(received.removed))
        earlier = list(self._queue)
        self._queue.append(turn)
        try:
            await self._wait_turn(turn, earlier)
            reasons = self._apply(received)
            turn.applied.set()
            await self._judged(received)
            for other in earlier:
                if other.type_url == turn.type_url:  # one type's answers go upstream in order
                    await other.done.wait()
            refused = self._ledgers[received.type_url].reasons if received.type_url in self._ledgers else {}
            return {**reasons, **{name: refused[name] for name in received.changed if name in refused}}
        finally:
            self._queue.remove(turn)
            turn.applied.set()
            turn.done.set()

    def _apply(self, received: Received) -> dict[str, str]:
        """Into the ledger and on to Envoy; what can't even be read is refused at once."""
        ledger = self._ledgers.get(received.type_url)
        if ledger is None:
            return dict.fromkeys(received.changed, "is of a type that is not used here")
        faults = {name: defect(received.type_url, name, entry.body) for name, entry in received.changed.items()}
        good = {name: entry for name, entry in received.changed.items() if not faults[name]}
        ledger.offer(good, received.removed)
        if received.type_url == EDS:
            self._absent = (self._absent | set(received.removed)) - received.changed.keys()
        reasons = {name: fault for name, fault in faults.items() if fault} | dict(received.bad)
        unreadable = self._unreadable.setdefault(received.type_url, {})
        for name in (*good, *received.removed):
            unreadable.pop(name, None)
        unreadable.update(reasons)
        self._after(received.type_url)
        return reasons

    # --- from Envoy

    def asked(self, type_url: str) -> None:
        """Envoy subscribed to a type, on whichever stream."""
        self._asked.set(self._asked.value | {type_url})

    async def asked_for(self, type_url: str) -> None:
        """Returns once Envoy has asked for a type in this life of the agent."""
        async for asked in self._asked.watch():
            if type_url in asked:
                return

    def stream_opened(self, stream: int) -> None:
        """Envoy (or a new epoch of it) connected; ``stream`` tells streams apart. Verdicts of the newest count."""
        self._streams.append(stream)
        self._equipped = False
        for ledger in self._ledgers.values():
            ledger.reconnected()
        self._publish()
        self._progress.set(self._progress.value + 1)

    def stream_closed(self, stream: int) -> None:
        """That stream ended; who waits for its verdict goes on without."""
        with contextlib.suppress(ValueError):
            self._streams.remove(stream)
        self._progress.set(self._progress.value + 1)

    def claimed(self, stream: int, type_url: str, versions: Mapping[str, str]) -> None:
        """What Envoy says it has, in the first request of a type on a new stream."""
        ledger = self._ledgers.get(type_url)
        if ledger is not None and versions and self._streams and stream == self._streams[-1]:
            self._equipped = True
            ledger.claimed(versions)
            self._after(type_url)
            self._progress.set(self._progress.value + 1)

    def heard(self, stream: int, verdict: Verdict) -> None:
        """Envoy's ACK or NACK of one response."""
        ledger = self._ledgers.get(verdict.type_url)
        if ledger is None or not self._streams or stream != self._streams[-1]:
            return
        if verdict.error:
            ledger.refused(verdict.resources, verdict.removed, verdict.error)
        else:
            ledger.accepted(verdict.resources, verdict.removed)
        self._after(verdict.type_url)
        self._progress.set(self._progress.value + 1)

    def bind_again(self) -> None:
        """Ports may be free again; Envoy binds a listener once, when it is told."""
        if self._streams and self._ledgers[LDS].try_again(is_port_taken):
            self._publish()

    @property
    def envoy_connected(self) -> bool:
        return bool(self._streams)

    # --- what follows from a change

    def _after(self, type_url: str) -> None:
        ledger = self._ledgers[type_url]
        self._follow(type_url)
        self._publish()
        if type_url not in self.settled.value and ledger.heard and (type_url in OWN_TYPES or ledger.judged):
            self.settled.set(self.settled.value | {type_url})
        reasons = {**self._unreadable.get(type_url, {}), **ledger.reasons}
        unbound = {name: reason for name, reason in reasons.items() if is_port_taken(reason)}
        if type_url == LDS:
            self.unbound.set(unbound)
        self._rejections.show(short_name(type_url), {n: r for n, r in reasons.items() if n not in unbound})
        self._cache.save(self._good)

    @property
    def serving(self) -> Snapshot:
        """What is or would be served, also while a proxy that holds it already is told nothing."""
        return {type_url: ledger.served for type_url, ledger in self._ledgers.items() if ledger.known}

    def _good(self) -> Snapshot:
        return {type_url: ledger.good for type_url, ledger in self._ledgers.items() if ledger.known}

    def _follow(self, type_url: str) -> None:
        """Names to ask for, and the taps."""
        ledger = self._ledgers[type_url]
        if type_url in REFERS_TO:
            self._refer(type_url, ledger)
        if ledger.known and type_url in TAPPED:
            self.taps.take(type_url, ledger.used if type_url in ENVOY_TYPES else ledger.offered)

    def _refer(self, type_url: str, ledger: Ledger) -> None:
        target = REFERS_TO[type_url]
        names = self._references.wanted(type_url, ledger.offered, ledger.served)
        gone = self.wanted.value[target] - names
        self._ledgers[target].forget(gone)
        self._absent -= gone
        self.wanted.set({**self.wanted.value, target: names})

    def _publish(self) -> None:
        known = (t for t in ENVOY_TYPES if self._ledgers[t].known and (self._ledgers[t].heard or not self._equipped))
        self.snapshot.set({type_url: self._serve(type_url) for type_url in known})

    def _serve(self, type_url: str) -> Mapping[str, Entry]:
        """Adapted entries; each is adapted once per version."""
        served = self._ledgers[type_url].served
        if self._adapt is identity:
            return served
        before = self._adapted.get(type_url, {})
        now: dict[str, tuple[Entry, Entry]] = {}
        for name, entry in served.items():
            known = before.get(name)
            now[name] = known if known and known[0] is entry else (entry, self._adapt(type_url, name, entry))
        self._adapted[type_url] = now
        return {name: adapted for name, (_, adapted) in now.items()}

    # --- waiting

    async def _wait_turn(self, turn: _Turn, earlier: list[_Turn]) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._patience):
                for other in earlier:
                    if turn.must_finish_first(other):
                        await other.done.wait()
                    elif other.type_url == turn.type_url:
                        await other.applied.wait()
                while turn.type_url in (LDS, RDS, *OWN_TYPES) and not self._endpoints_here():
                    await self._progress.newer(self._progress.version)

    def _endpoints_here(self) -> bool:
        """Every cluster's endpoints have come: a listener that goes ahead of them would fail its first connections."""
        return not (self.wanted.value[EDS] - self._ledgers[EDS].offered.keys() - self._absent)

    async def _judged(self, received: Received) -> None:
        """Until Envoy has an opinion on all of it, or is gone, or patience ends."""
        self._progress.set(self._progress.value + 1)  # endpoints may just have come
        if received.type_url not in ENVOY_TYPES:
            return
        ledger = self._ledgers[received.type_url]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._patience):
                while self._streams and ledger.waiting(received.changed):
                    await self._progress.newer(self._progress.version)
