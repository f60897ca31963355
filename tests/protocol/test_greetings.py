"""Requests that many clients send alike are read once, and mean the same as if each were read by itself."""

import pytest
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest

from meshagent.protocol.entry import Entry, Patched
from meshagent.protocol.greetings import KEPT, LEAST_BYTES, Greetings
from meshagent.protocol.publisher import Publisher
from meshagent.protocol.types import EDS, ProtocolError
from meshagent.transport.methods import serialize


def request(version: str = "1", count: int = 300) -> DeltaDiscoveryRequest:
    names = [f"outbound|80||service-{number}" for number in range(count)]
    held = dict.fromkeys(names, version)
    return DeltaDiscoveryRequest(type_url=EDS, resource_names_subscribe=names, initial_resource_versions=held)


def test_equal_requests_are_one_and_different_ones_are_not() -> None:
    greetings, data = Greetings(), serialize(request())
    assert len(data) > LEAST_BYTES
    first, second = greetings.parse(data), greetings.parse(bytes(bytearray(data)))
    assert first is second and first == request()
    assert greetings.greeting(first) is greetings.greeting(second)
    assert greetings.parse(serialize(request("2"))) == request("2")
    small = serialize(request(count=1))
    assert greetings.parse(small) is not greetings.parse(small)


def test_only_the_last_few_are_kept_and_those_that_went_are_read_all_the_same() -> None:
    greetings = Greetings()
    requests = [greetings.parse(serialize(request(str(number)))) for number in range(3 * KEPT)]
    assert len(greetings._requests) == len(greetings._read) == KEPT
    for number, each in enumerate(requests):
        assert set(greetings.greeting(each).versions.values()) == {str(number)}
    assert len(greetings._read) == KEPT


def test_clients_that_share_a_greeting_do_not_change_what_the_others_have() -> None:
    greetings, data = Greetings(), serialize(request())
    entries = Patched({name: Entry("1", b"") for name in request().resource_names_subscribe})
    one, other = (Publisher({EDS: entries}, greetings=greetings) for _ in range(2))
    for publisher in (one, other):
        (greeted,) = publisher.on_request(greetings.parse(data)).responses
        assert not greeted.resources and not greeted.removed_resources
    first = min(entries)
    one.on_snapshot({EDS: Patched({**entries, first: Entry("2", b"")}, entries.mark, {first})})
    one.on_request(DeltaDiscoveryRequest(type_url=EDS, resource_names_unsubscribe=[first]))
    (changed,) = other.on_snapshot({EDS: Patched({**entries, first: Entry("3", b"")})}).responses
    assert [resource.name for resource in changed.resources] == [first]


def test_a_name_that_is_too_long_ends_the_stream_however_often_it_comes() -> None:
    greetings = Greetings()
    data = serialize(DeltaDiscoveryRequest(type_url=EDS, resource_names_subscribe=["x" * LEAST_BYTES]))
    for _ in range(2):
        with pytest.raises(ProtocolError):
            greetings.greeting(greetings.parse(data))
