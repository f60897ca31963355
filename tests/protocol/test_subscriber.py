"""The client's half of delta ADS: what is held, what is asked, and what a hostile server can do (nothing)."""

import contextlib

import pytest
from envoy.config.core.v3.base_pb2 import Node
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryResponse
from hypothesis import given
from hypothesis import strategies as st

from meshagent.protocol import subscriber as module
from meshagent.protocol.subscriber import Subscriber
from meshagent.protocol.types import CDS, EDS, LDS, NDS, ProtocolError

NODE = Node(id="sidecar~10.0.0.1~web.default~default.svc.mesh.internal")


def response(
    type_url: str, nonce: str, *names: str, removed: tuple[str, ...] = (), inner: str = "", version: str = "1"
) -> DeltaDiscoveryResponse:
    result = DeltaDiscoveryResponse(type_url=type_url, nonce=nonce, removed_resources=removed)
    for name in names:
        resource = result.resources.add(name=name, version=version)
        resource.resource.type_url = inner or type_url
        resource.resource.value = name.encode()
    return result


def held(subscriber: Subscriber, type_url: str = CDS) -> dict[str, str]:
    return {name: e.version for name, e in subscriber.resources.get(type_url, {}).items()}


def opened() -> Subscriber:
    subscriber = Subscriber(NODE, [CDS, LDS], {EDS: ["a"]})
    subscriber.open()
    return subscriber


def test_only_the_first_request_of_a_stream_carries_the_node() -> None:
    subscriber = Subscriber(NODE, [CDS, LDS], {EDS: ["a", "b"]})
    for _ in range(2):
        requests = subscriber.open()
        assert [r.type_url for r in requests] == [CDS, LDS, EDS]
        assert [r.HasField("node") for r in requests] == [True, False, False]
        assert [list(r.resource_names_subscribe) for r in requests] == [["*"], ["*"], ["a", "b"]]
    assert not subscriber.subscribe(EDS, ["c"])[0].HasField("node")


def test_what_is_received_counts_only_once_it_is_accepted_and_is_then_acked() -> None:
    subscriber = opened()
    received = subscriber.receive(response(CDS, "n1", "x", "y"))
    assert held(subscriber) == {}
    (ack,) = subscriber.accept(received)
    assert (ack.response_nonce, ack.HasField("error_detail")) == ("n1", False)
    assert held(subscriber) == {"x": "1", "y": "1"}


def test_held_versions_are_told_on_the_next_stream() -> None:
    subscriber = opened()
    subscriber.accept(subscriber.receive(response(CDS, "n1", "x", version="7")))
    assert dict(subscriber.open()[0].initial_resource_versions) == {"x": "7"}


def test_a_rejected_resource_keeps_its_previous_and_the_others_count() -> None:
    subscriber = opened()
    subscriber.accept(subscriber.receive(response(CDS, "n1", "x", "y")))
    (nack,) = subscriber.reject(subscriber.receive(response(CDS, "n2", "x", "y", version="2")), {"x": "no such thing"})
    assert held(subscriber) == {"x": "1", "y": "2"}
    assert (nack.response_nonce, nack.error_detail.message) == ("n2", "x: no such thing")


def test_a_rejected_removal_keeps_the_resource() -> None:
    subscriber = opened()
    subscriber.accept(subscriber.receive(response(CDS, "n1", "x", "y")))
    subscriber.reject(subscriber.receive(response(CDS, "n2", removed=("x", "y"))), {"x": "still in use"})
    assert held(subscriber) == {"x": "1"}


def test_a_verdict_on_an_earlier_stream_changes_nothing() -> None:
    subscriber = opened()
    late = subscriber.receive(response(CDS, "n1", "x", version="old"))
    subscriber.open()
    subscriber.accept(subscriber.receive(response(CDS, "n1", "x", version="new")))
    assert subscriber.accept(late) == []
    assert held(subscriber) == {"x": "new"}


def test_resources_nobody_asked_for_are_ignored_without_a_nack() -> None:
    subscriber = opened()
    (ack,) = subscriber.accept(subscriber.receive(response(EDS, "n1", "a", "stranger")))
    assert not ack.HasField("error_detail")
    assert held(subscriber, EDS) == {"a": "1"}


def test_an_unsubscribed_name_is_dropped_and_told_but_stays_under_the_wildcard() -> None:
    subscriber = opened()
    subscriber.accept(subscriber.receive(response(EDS, "n1", "a")))
    (request,) = subscriber.unsubscribe(EDS, ["a", "never-asked"])
    assert (list(request.resource_names_unsubscribe), held(subscriber, EDS)) == (["a"], {})
    subscriber.subscribe(CDS, ["x"])
    subscriber.accept(subscriber.receive(response(CDS, "n2", "x")))
    subscriber.unsubscribe(CDS, ["x"])
    assert held(subscriber) == {"x": "1"}


def test_a_type_without_names_is_first_asked_when_a_name_comes() -> None:
    subscriber = Subscriber(NODE, [], {EDS: []})
    assert subscriber.open() == []
    (request,) = subscriber.subscribe(EDS, ["a"])
    assert request.HasField("node")
    assert subscriber.subscribe(EDS, ["a"]) == []


def test_restored_resources_are_held_and_told() -> None:
    first = opened()
    first.accept(first.receive(response(CDS, "n1", "x")))
    second = Subscriber(NODE, [CDS])
    second.restore({**first.resources, "type.googleapis.com/other": {}})
    assert dict(second.open()[0].initial_resource_versions) == {"x": "1"}
    assert set(second.resources) == {CDS}


def test_a_published_map_is_never_changed_afterwards() -> None:
    subscriber = opened()
    subscriber.accept(subscriber.receive(response(CDS, "n1", "x")))
    before = subscriber.resources
    subscriber.accept(subscriber.receive(response(CDS, "n2", "y")))
    assert set(before[CDS]) == {"x"}


def test_the_one_name_table_of_istiod_has_no_name_and_gets_one() -> None:
    subscriber = Subscriber(NODE, [NDS])
    subscriber.open()
    subscriber.accept(subscriber.receive(response(NDS, "n1", "")))
    assert set(subscriber.resources[NDS]) == {"nametable"}


@pytest.mark.parametrize(
    ("answer", "bad"),
    [
        (response(CDS, "n", "x", "y", inner=LDS), {"x", "y"}),
        (response(CDS, "n", "x", "x", "y"), {"x"}),
        (response(CDS, "n", "x", removed=("x",)), {"x"}),
        (response(CDS, "n", "", "y"), {""}),
        (response(CDS, "n", "z" * 3_000, "y"), {"z" * 2_048}),
    ],
    ids=["wrong type", "duplicate", "sent and removed", "no name", "long name"],
)
def test_a_resource_that_cannot_be_read_is_named_and_nacked_alone(
    answer: DeltaDiscoveryResponse, bad: set[str]
) -> None:
    subscriber = opened()
    received = subscriber.receive(answer)
    assert set(received.bad) == bad
    (nack,) = subscriber.accept(received)
    assert nack.HasField("error_detail")
    assert set(held(subscriber)) == {r.name for r in answer.resources} - bad - {"z" * 3_000}


@pytest.mark.parametrize(
    "answer",
    [response(NDS, "n", "x"), response("", "n"), response(CDS, ""), response(CDS, "n" * 1_000)],
    ids=["type not asked", "no type", "no nonce", "long nonce"],
)
def test_a_server_that_breaks_the_protocol_ends_the_stream_and_nothing_held_is_lost(
    answer: DeltaDiscoveryResponse,
) -> None:
    subscriber = opened()
    subscriber.accept(subscriber.receive(response(CDS, "n1", "x")))
    with pytest.raises(ProtocolError):
        subscriber.receive(answer)
    assert held(subscriber) == {"x": "1"}


def test_endless_resources_and_endless_responses_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_NAMES", 10)
    monkeypatch.setattr(module, "MAX_HELD_BYTES", 200)
    subscriber = opened()
    subscriber.accept(subscriber.receive(response(CDS, "n1", *"abcdefgh")))
    with pytest.raises(ProtocolError, match="more than 10"):
        subscriber.receive(response(CDS, "n2", *"ijk"))
    big = response(LDS, "n3", "l")
    big.resources[0].resource.value = bytes(300)
    with pytest.raises(ProtocolError, match="MiB"):
        subscriber.receive(big)
    with pytest.raises(ProtocolError, match="without waiting"):
        for i in range(1_000):
            subscriber.receive(response(LDS, f"m{i}"))


@given(st.binary(max_size=200))
def test_garbage_never_crashes_the_client(data: bytes) -> None:
    answer = DeltaDiscoveryResponse()
    try:
        answer.ParseFromString(data)
    except Exception:
        return  # grpc refuses it before we see it
    subscriber = opened()
    with contextlib.suppress(ProtocolError):
        subscriber.accept(subscriber.receive(answer))
