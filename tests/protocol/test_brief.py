"""A client that comes back to a hub says what it holds by a digest, and names and versions only where that differs."""

import pytest
from envoy.config.core.v3.base_pb2 import Node
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse
from hypothesis import given
from hypothesis import strategies as st

from meshagent.model.errors import MeshagentError
from meshagent.protocol import brief
from meshagent.protocol.entry import Entry, Patched, Snapshot
from meshagent.protocol.publisher import Publisher
from meshagent.protocol.subscriber import Subscriber
from meshagent.protocol.types import CDS, EDS, MAX_NAMES, ProtocolError

MANY = {f"svc-{n}": Entry(f"v{n}", b"x") for n in range(100)}
NAMES = [f"svc-{n}" for n in range(100)]


def mesh(changed: dict[str, Entry] | None = None) -> Snapshot:
    entries = {**MANY, **(changed or {})}
    return {CDS: Patched(entries), EDS: Patched(entries)}


def client() -> Subscriber:
    return Subscriber(Node(id="n"), [CDS], {EDS: NAMES})


def talk(subscriber: Subscriber, publisher: Publisher, sent: list[DeltaDiscoveryRequest] | None = None) -> list[str]:
    """One stream until both have said everything; the names that were sent. ``sent`` collects the requests."""
    up, told = list(subscriber.open()), []
    while up:
        request = up.pop(0)
        if sent is not None:
            sent.append(request)
        for response in publisher.on_request(request).responses:
            if (in_return := subscriber.meet(response)) is not None:
                up.append(in_return)
                continue
            received = subscriber.receive(response)
            told += [*received.changed, *(f"-{name}" for name in received.removed)]
            up += subscriber.accept(received)
    assert publisher.settled
    return told


def hub(snapshot: Snapshot) -> Publisher:
    return Publisher(snapshot, whole=True)


def test_the_second_stream_to_a_hub_says_by_a_digest_what_is_held() -> None:
    subscriber, sent = client(), list[DeltaDiscoveryRequest]()
    talk(subscriber, hub(mesh()))
    assert talk(subscriber, hub(mesh()), sent) == []
    first = sent[:2]
    assert [dict(each.initial_resource_versions).keys() for each in first] == [{brief.HELD}, {brief.HELD}]
    assert [list(each.resource_names_subscribe) for each in first] == [["*"], []]
    assert sum(each.ByteSize() for each in sent) < 1_000


def test_where_it_differs_the_hub_asks_and_sends_only_the_difference() -> None:
    subscriber, sent = client(), list[DeltaDiscoveryRequest]()
    talk(subscriber, hub(mesh()))
    smaller = {name: entry for name, entry in MANY.items() if name != "svc-7"}
    now: Snapshot = {CDS: Patched({**smaller, "svc-9": Entry("new", b"y")}), EDS: Patched(MANY)}
    assert talk(subscriber, hub(now), sent) == ["svc-9", "svc-9", "-svc-7"], (
        "a cluster that changed, its endpoints anew"
    )
    assert [dict(e.initial_resource_versions).keys() == MANY.keys() for e in sent if e.type_url == CDS][1]
    assert subscriber.resources == {CDS: now[CDS], EDS: MANY}


def test_a_subscription_that_comes_before_the_answer_counts_after_it() -> None:
    subscriber = client()
    talk(subscriber, hub(mesh()))
    publisher = hub(mesh({"svc-7": Entry("new", b"y"), "svc-new": Entry("1", b"z")}))
    first, endpoints = subscriber.open()
    (question,) = publisher.on_request(endpoints).responses
    assert question.control_plane.identifier == brief.IN_FULL and not publisher.settled
    (early,) = subscriber.subscribe(EDS, ["svc-new"])
    assert publisher.on_request(early).responses == ()
    in_full = subscriber.meet(question)
    assert in_full is not None and "svc-new" in in_full.resource_names_subscribe
    (answer,) = publisher.on_request(in_full).responses
    assert [resource.name for resource in answer.resources] == ["svc-7", "svc-new"]
    assert first.type_url == CDS


def test_a_few_resources_are_named_and_so_is_everything_to_another_control_plane() -> None:
    few = Subscriber(Node(id="n"), [CDS])
    some: Snapshot = {CDS: {"a": Entry("1", b"x")}}
    talk(few, hub(some))
    assert dict(few.open()[0].initial_resource_versions) == {"a": "1"}

    subscriber = client()
    talk(subscriber, hub(mesh()))
    subscriber.open()
    with pytest.raises(MeshagentError, match="another control plane"):
        subscriber.meet(DeltaDiscoveryResponse(type_url=CDS, nonce="1", removed_resources=[brief.HELD]))
    assert len(subscriber.open()[0].initial_resource_versions) == len(MANY), "and from then on in full"


def test_an_envoy_is_told_of_no_digest_and_a_name_like_it_is_a_name_to_it() -> None:
    publisher = Publisher(mesh(), forgetful=True)
    request = DeltaDiscoveryRequest(type_url=CDS, initial_resource_versions={brief.HELD: "1"})
    first = publisher.on_request(request).responses[0]
    assert first.control_plane.identifier == "" and len(first.resources) == len(MANY)


def test_a_control_plane_that_asks_again_and_again_ends_its_stream() -> None:
    subscriber = client()
    subscriber.open()
    question = DeltaDiscoveryResponse(type_url=CDS, nonce="1")
    question.control_plane.identifier = brief.IN_FULL
    with pytest.raises(ProtocolError, match="and was told"):
        subscriber.meet(question)
    talk(subscriber, hub(mesh()))
    subscriber.open()
    assert subscriber.meet(question) is not None
    with pytest.raises(ProtocolError, match="and was told"):
        subscriber.meet(question)


def test_a_client_that_never_answers_the_question_is_bounded() -> None:
    publisher = hub(mesh())
    publisher.on_request(DeltaDiscoveryRequest(type_url=CDS, initial_resource_versions={brief.HELD: "other"}))
    with pytest.raises(ProtocolError, match="none that says what is held"):
        for number in range(MAX_NAMES):
            publisher.on_request(DeltaDiscoveryRequest(type_url=CDS, resource_names_subscribe=[f"{number}"]))


@given(st.dictionaries(st.text(max_size=6), st.text(max_size=6), max_size=4), st.data())
def test_only_equal_maps_have_equal_digests(one: dict[str, str], data: st.DataObject) -> None:
    shuffled = dict(data.draw(st.permutations(list(one.items()))))
    assert brief.digest(shuffled) == brief.digest(one)
    other = data.draw(st.dictionaries(st.text(max_size=6), st.text(max_size=6), max_size=4))
    assert (brief.digest(other) == brief.digest(one)) is (other == one)
