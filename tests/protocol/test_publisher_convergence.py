"""Whatever happens in whatever order between the two halves of ADS, the client ends with exactly what it accepts."""

from collections import deque

from envoy.config.core.v3.base_pb2 import Node
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from meshagent.model.errors import MeshagentError
from meshagent.protocol.entry import Entry
from meshagent.protocol.publisher import Publisher
from meshagent.protocol.subscriber import Subscriber
from meshagent.protocol.types import CDS, EDS, LDS, NDS, WILDCARD

TYPES = (CDS, EDS, LDS, NDS)
NAMES = ("a", "b", "c", "d")
names = st.sets(st.sampled_from(NAMES))
#: Publishers as they are used: plain, towards Envoy, towards an agent.
KINDS = st.sampled_from([{}, {"forgetful": True}, {"whole": True}])


class TwoHalves(RuleBasedStateMachine):
    """A server and a client with a wire between them that delivers in order, and may be cut at any moment."""

    def __init__(self) -> None:
        super().__init__()
        self.desired: dict[str, dict[str, Entry]] = {t: {} for t in TYPES}
        self.subscriber = Subscriber(Node(id="n"), [CDS, LDS, NDS], {EDS: []}, brief_from=1)
        self.wanted: set[str] = set()
        self.down: deque[DeltaDiscoveryResponse] = deque()
        self.up: deque[DeltaDiscoveryRequest] = deque()

    @initialize(kind=KINDS)
    def connect(self, kind: dict[str, bool]) -> None:
        self.kind = kind
        self.publisher = Publisher({t: dict(entries) for t, entries in self.desired.items()}, **kind)
        self.down.clear()
        self.up.clear()
        self.up.extend(self.subscriber.open())

    @rule(kind=KINDS)
    def reconnect(self, kind: dict[str, bool]) -> None:
        self.connect(kind)

    @rule(type_url=st.sampled_from(TYPES), name=st.sampled_from(NAMES), content=st.integers(0, 4))
    def put(self, type_url: str, name: str, content: int) -> None:
        """Content 0 is what the client refuses; equal content has an equal version."""
        self.desired[type_url][name] = Entry(f"{name}{content}", b"bad" if content == 0 else str(content).encode())
        self.publish()

    @rule(type_url=st.sampled_from(TYPES), name=st.sampled_from(NAMES))
    def delete(self, type_url: str, name: str) -> None:
        self.desired[type_url].pop(name, None)
        self.publish()

    @rule(more=names, fewer=names)
    def change_subscription(self, more: set[str], fewer: set[str]) -> None:
        self.wanted = (self.wanted | more) - fewer
        self.up.extend(self.subscriber.subscribe(EDS, more))
        self.up.extend(self.subscriber.unsubscribe(EDS, fewer))

    @rule(on=st.booleans())
    def change_wildcard(self, on: bool) -> None:
        change = self.subscriber.subscribe if on else self.subscriber.unsubscribe
        self.wanted = self.wanted | {WILDCARD} if on else self.wanted - {WILDCARD}
        self.up.extend(change(EDS, [WILDCARD]))

    @rule()
    def server_hears(self) -> None:
        if self.up:
            self.down.extend(self.publisher.on_request(self.up.popleft()).responses)

    @rule()
    def client_hears(self) -> None:
        if self.down:
            response = self.down.popleft()
            try:
                in_return = self.subscriber.meet(response)
            except MeshagentError:  # another kind of server than on the stream before
                self.connect(self.kind)
                return
            if in_return is not None:
                self.up.append(in_return)
                return
            received = self.subscriber.receive(response)
            bad = {name: "refused" for name, e in received.changed.items() if e.body == b"bad"}
            self.up.extend(self.subscriber.reject(received, bad))

    @rule()
    def all_is_delivered(self) -> None:
        steps = 0
        while self.up or self.down:
            self.server_hears()
            self.client_hears()
            steps += 1
            assert steps < 1_000, "the two halves never come to rest"
        assert self.publisher.settled
        for type_url in TYPES:
            self.assert_equal(type_url)

    @invariant()
    def nothing_refused_is_ever_held(self) -> None:
        assert all(e.body != b"bad" for entries in self.subscriber.resources.values() for e in entries.values())

    def teardown(self) -> None:
        if hasattr(self, "publisher"):
            self.all_is_delivered()

    def publish(self) -> None:
        snapshot = {t: dict(entries) for t, entries in self.desired.items()}
        self.down.extend(self.publisher.on_snapshot(snapshot).responses)

    def assert_equal(self, type_url: str) -> None:
        everything = type_url != EDS or WILDCARD in self.wanted
        desired = {n: e for n, e in self.desired[type_url].items() if everything or n in self.wanted}
        held = self.subscriber.resources.get(type_url, {})
        good = {n: e for n, e in desired.items() if e.body != b"bad"}
        assert {n: e for n, e in held.items() if n in good} == good
        assert held.keys() <= desired.keys()  # of a refused one an earlier version may still be held


TestTwoHalves = TwoHalves.TestCase
TestTwoHalves.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
