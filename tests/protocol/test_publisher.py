"""The server's half of delta ADS: what a client is sent, in which order, and what it is spared."""

import pytest
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse

from meshagent.protocol import publisher as module
from meshagent.protocol.publisher import Entry, Publisher, Reaction
from meshagent.protocol.types import CDS, EDS, HOST_POLICY, LDS, NDS, RDS, ProtocolError


def entry(text: str) -> Entry:
    return Entry(f"v-{text}", text.encode())


def ask(
    publisher: Publisher, type_url: str, *names: str, drop: tuple[str, ...] = (), versions: dict[str, str] | None = None
) -> Reaction:
    return publisher.on_request(
        DeltaDiscoveryRequest(
            type_url=type_url,
            resource_names_subscribe=names,
            resource_names_unsubscribe=drop,
            initial_resource_versions=versions or {},
        )
    )


def answer(publisher: Publisher, response: DeltaDiscoveryResponse, error: str = "") -> Reaction:
    request = DeltaDiscoveryRequest(type_url=response.type_url, response_nonce=response.nonce)
    if error:
        request.error_detail.code = 13
        request.error_detail.message = error
    return publisher.on_request(request)


def told(reaction: Reaction) -> list[tuple[str, list[str], list[str]]]:
    return [
        (r.type_url.rpartition(".")[2], [x.name for x in r.resources], list(r.removed_resources))
        for r in reaction.responses
    ]


def test_an_empty_first_subscription_and_a_star_both_mean_everything() -> None:
    for names in ((), ("*",)):
        publisher = Publisher({CDS: {"a": entry("1"), "b": entry("2")}})
        assert told(ask(publisher, CDS, *names)) == [("Cluster", ["a", "b"], [])]


def test_an_empty_first_subscription_of_routes_means_none_yet() -> None:
    publisher = Publisher({RDS: {"80": entry("1")}})
    assert told(ask(publisher, RDS)) == [("RouteConfiguration", [], [])]
    assert told(ask(publisher, RDS, "80")) == [("RouteConfiguration", ["80"], [])]


def test_a_resource_carries_type_version_and_body() -> None:
    resource = ask(Publisher({CDS: {"a": entry("1")}}), CDS).responses[0].resources[0]
    assert (resource.version, resource.resource.type_url, resource.resource.value) == ("v-1", CDS, b"1")


def test_a_first_request_is_answered_even_when_there_is_nothing_because_envoys_start_waits_for_it() -> None:
    assert told(ask(Publisher({LDS: {}}), LDS)) == [("Listener", [], [])]


def test_nothing_is_said_about_a_type_that_is_not_known_yet_and_nothing_of_it_removed() -> None:
    publisher = Publisher()
    assert told(ask(publisher, CDS, versions={"a": "v-1"})) == []
    assert told(publisher.on_snapshot({CDS: {"a": entry("1")}})) == [("Cluster", [], [])]


def test_a_name_that_does_not_exist_is_reported_as_removed_once_and_sent_when_it_appears() -> None:
    publisher = Publisher({EDS: {}})
    assert told(ask(publisher, EDS, "x")) == [("ClusterLoadAssignment", [], ["x"])]
    assert told(publisher.on_snapshot({EDS: {"y": entry("1")}})) == []
    assert told(publisher.on_snapshot({EDS: {"x": entry("1")}})) == [("ClusterLoadAssignment", ["x"], [])]


def test_after_a_reconnect_only_differences_and_removals_are_sent() -> None:
    publisher = Publisher({CDS: {"same": entry("1"), "new": entry("2"), "changed": entry("4")}})
    first = ask(publisher, CDS, "*", versions={"same": "v-1", "changed": "v-3", "gone": "v-9"})
    assert told(first) == [("Cluster", ["changed", "new"], []), ("Cluster", [], ["gone"])]


def test_a_named_reconnect_with_the_same_versions_gets_an_empty_answer() -> None:
    publisher = Publisher({EDS: {"a": entry("1")}})
    assert told(ask(publisher, EDS, "a", versions={"a": "v-1"})) == [("ClusterLoadAssignment", [], [])]


def test_additions_go_out_before_what_refers_to_them_and_removals_after() -> None:
    old = {t: {"old": entry("1")} for t in (HOST_POLICY, NDS, RDS, LDS, EDS, CDS)}
    new = {t: {"new": entry("1")} for t in (HOST_POLICY, NDS, RDS, LDS, EDS, CDS)}
    publisher = Publisher(old)
    for type_url in old:
        ask(publisher, type_url, "*")
    assert told(publisher.on_snapshot(new)) == [
        ("Cluster", ["new"], []),
        ("ClusterLoadAssignment", ["new"], []),
        ("Listener", ["new"], ["old"]),
        ("RouteConfiguration", ["new"], ["old"]),
        ("NameTable", ["new"], ["old"]),
        ("HostPolicy", ["new"], ["old"]),
        ("ClusterLoadAssignment", [], ["old"]),
        ("Cluster", [], ["old"]),
    ]


def test_an_unchanged_snapshot_sends_nothing() -> None:
    publisher = Publisher({CDS: {"a": entry("1")}})
    ask(publisher, CDS)
    assert told(publisher.on_snapshot({CDS: {"a": entry("1")}})) == []


def test_asking_again_for_a_held_name_sends_it_again() -> None:
    publisher = Publisher({EDS: {"a": entry("1"), "b": entry("1")}})
    ask(publisher, EDS, "a", "b")
    assert told(ask(publisher, EDS, "a")) == [("ClusterLoadAssignment", ["a"], [])]


def test_a_changed_cluster_brings_its_endpoints_again_because_it_warms_anew() -> None:
    publisher = Publisher({CDS: {"a": entry("1"), "b": entry("1")}, EDS: {"a": entry("1"), "b": entry("1")}})
    ask(publisher, CDS)
    ask(publisher, EDS, "a", "b")
    changed = publisher.on_snapshot({CDS: {"a": entry("2"), "b": entry("1")}, EDS: publisher.snapshot[EDS]})
    assert told(changed) == [("Cluster", ["a"], []), ("ClusterLoadAssignment", ["a"], [])]


def test_what_is_unsubscribed_is_not_sent_any_more() -> None:
    publisher = Publisher({EDS: {"a": entry("1")}})
    ask(publisher, EDS, "a")
    assert told(ask(publisher, EDS, drop=("a",))) == []
    assert told(publisher.on_snapshot({EDS: {"a": entry("2")}})) == []


def test_a_name_unsubscribed_under_the_wildcard_is_sent_again_because_the_client_dropped_it() -> None:
    publisher = Publisher({CDS: {"a": entry("1"), "b": entry("1")}})
    ask(publisher, CDS, "*", "a")
    assert told(ask(publisher, CDS, drop=("a",))) == [("Cluster", ["a"], [])]


def test_without_the_wildcard_only_names_are_left() -> None:
    publisher = Publisher({CDS: {"a": entry("1"), "b": entry("1")}})
    ask(publisher, CDS, "*", "a")
    ask(publisher, CDS, drop=("*",))
    assert told(publisher.on_snapshot({CDS: {"a": entry("2"), "b": entry("2")}})) == [("Cluster", ["a"], [])]


def test_an_ack_and_a_nack_are_heard_with_what_was_sent() -> None:
    publisher = Publisher({CDS: {"a": entry("1")}})
    first = ask(publisher, CDS).responses[0]
    (verdict,) = answer(publisher, first).verdicts
    assert (verdict.error, dict(verdict.resources), verdict.type_url) == ("", {"a": "v-1"}, CDS)
    second = publisher.on_snapshot({CDS: {"a": entry("2")}}).responses[0]
    (verdict,) = answer(publisher, second, "a: no such filter").verdicts
    assert (verdict.error, dict(verdict.resources)) == ("a: no such filter", {"a": "v-2"})


def test_a_refused_resource_is_not_sent_again_until_its_content_changes() -> None:
    publisher = Publisher({LDS: {"a": entry("1")}})
    answer(publisher, ask(publisher, LDS).responses[0], "no")
    assert told(publisher.on_snapshot({LDS: {"a": entry("1"), "b": entry("1")}})) == [("Listener", ["b"], [])]
    assert told(publisher.on_snapshot({LDS: {"a": entry("3"), "b": entry("1")}})) == [("Listener", ["a"], [])]


def test_a_stale_or_foreign_nonce_is_no_verdict() -> None:
    publisher = Publisher({CDS: {"a": entry("1")}, LDS: {}})
    response = ask(publisher, CDS).responses[0]
    ask(publisher, LDS)
    stale = DeltaDiscoveryRequest(type_url=CDS, response_nonce="777")
    foreign = DeltaDiscoveryRequest(type_url=LDS, response_nonce=response.nonce)
    assert publisher.on_request(stale) == Reaction() == publisher.on_request(foreign)
    assert len(answer(publisher, response).verdicts) == 1
    assert answer(publisher, response) == Reaction()


def test_big_updates_are_cut_into_bounded_responses_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_RESPONSE_BYTES", 1_000)
    snapshot = {t: {f"n{i:02}": Entry("1", bytes(400)) for i in range(6)} for t in (EDS, CDS)}
    publisher = Publisher(snapshot)
    ask(publisher, EDS)  # named only: nothing yet
    responses = ask(publisher, CDS, "*").responses
    assert [len(r.resources) for r in responses] == [1] * 6
    assert all(r.ByteSize() < 1_000 for r in responses)
    assert [r.resources[0].name for r in responses] == [f"n{i:02}" for i in range(6)]


def test_a_client_that_does_not_answer_costs_a_window_and_then_gets_the_newest_state() -> None:
    publisher = Publisher({CDS: {"a": entry("0")}, NDS: {"nametable": entry("0")}})
    sent = [*ask(publisher, CDS).responses, *ask(publisher, NDS).responses]
    for i in range(1, 100):
        sent += publisher.on_snapshot({CDS: {"a": entry(str(i))}, NDS: publisher.snapshot[NDS]}).responses
    assert len(sent) == module.WINDOW + 1
    names = publisher.on_snapshot({CDS: {"a": entry("99")}, NDS: {"nametable": entry("1")}})
    assert told(names) == [("NameTable", ["nametable"], [])]  # a stuck proxy does not stop the names
    caught_up = answer(publisher, sent[0])
    assert [r.resources[0].version for r in caught_up.responses] == ["v-99"]
    assert not publisher.settled


def test_endpoints_do_not_wait_for_answers_that_wait_for_them_but_their_removal_does() -> None:
    """Clusters are answered when they are warm: with their window full, their endpoints must get through."""
    publisher = Publisher({CDS: {}, EDS: {"old": entry("1")}})
    ask(publisher, CDS)
    answer(publisher, ask(publisher, EDS, "old").responses[0])
    for i in range(module.WINDOW):
        publisher.on_snapshot({CDS: {"a": entry(str(i))}, EDS: publisher.snapshot[EDS]})
    assert told(publisher.on_snapshot({CDS: publisher.snapshot[CDS], EDS: {"a": entry("1")}})) == []
    assert told(ask(publisher, EDS, "a", "nowhere")) == [("ClusterLoadAssignment", ["a"], ["nowhere"])]


def told_whole(publisher: Publisher, reaction: Reaction) -> list[tuple[str, list[str], list[str]]]:
    """Everything that follows while the client answers at once, in order."""
    found, waiting = told(reaction), list(reaction.responses)
    while waiting:
        reaction = answer(publisher, waiting.pop(0))
        found += told(reaction)
        waiting += reaction.responses
    return found


def test_a_snapshot_is_told_to_its_end_although_the_world_has_moved_on_then_comes_the_newest() -> None:
    first = {CDS: {"a": entry("1")}, EDS: {"a": entry("1")}, LDS: {"l": entry("to a")}}
    publisher = Publisher(first, whole=True)
    clusters = ask(publisher, CDS)
    listeners = ask(publisher, LDS)
    for name in ("b", "c"):
        snapshot = {CDS: {name: entry("1")}, EDS: {name: entry("1")}, LDS: {"l": entry(f"to {name}")}}
        assert told(publisher.on_snapshot(snapshot)) == []
    assert told(ask(publisher, EDS, "a")) == [("ClusterLoadAssignment", ["a"], [])]  # it is what the listener uses
    assert not publisher.settled
    for nonce, kind in enumerate((clusters, listeners), 1):
        assert told(answer(publisher, kind.responses[0])) == [], nonce
    last = DeltaDiscoveryRequest(type_url=EDS, response_nonce="3")
    assert told_whole(publisher, publisher.on_request(last)) == [
        ("Cluster", ["c"], []),
        ("Listener", ["l"], []),
        ("ClusterLoadAssignment", [], ["a"]),
        ("Cluster", [], ["a"]),
    ]
    assert publisher.settled


def test_endpoints_that_move_again_are_told_before_the_client_has_answered_the_first_time() -> None:
    clusters, listeners = {"a": entry("1")}, {"l": entry("to a")}
    publisher = Publisher({CDS: clusters, EDS: {"a": entry("1")}, LDS: listeners}, whole=True)
    for kind in (CDS, LDS):
        answer(publisher, ask(publisher, kind).responses[0])
    ask(publisher, EDS, "a")  # the answer to it is still to come
    moved = publisher.on_snapshot({CDS: clusters, EDS: {"a": entry("2")}, LDS: listeners})
    assert told(moved) == [("ClusterLoadAssignment", ["a"], [])]
    other = {CDS: {**clusters, "b": entry("1")}, EDS: {"a": entry("3"), "b": entry("1")}, LDS: listeners}
    assert told(publisher.on_snapshot(other)) == []
    told_whole(publisher, moved)
    assert told_whole(publisher, publisher.on_request(DeltaDiscoveryRequest(type_url=EDS, response_nonce="3"))) == [
        ("Cluster", ["b"], []),
        ("ClusterLoadAssignment", ["a"], []),
    ]


@pytest.mark.parametrize(
    "request_",
    [
        DeltaDiscoveryRequest(),
        DeltaDiscoveryRequest(type_url=CDS, resource_names_subscribe=[""]),
        DeltaDiscoveryRequest(type_url=CDS, resource_names_subscribe=["x" * 5_000]),
        DeltaDiscoveryRequest(type_url=CDS, resource_names_subscribe=[str(i) for i in range(100_001)]),
        DeltaDiscoveryRequest(type_url=CDS, initial_resource_versions={str(i): "1" for i in range(100_001)}),
    ],
    ids=["no type", "empty name", "long name", "many names", "many versions"],
)
def test_a_request_beyond_the_bounds_ends_the_stream(request_: DeltaDiscoveryRequest) -> None:
    with pytest.raises(ProtocolError):
        Publisher({CDS: {}}).on_request(request_)


def test_a_client_cannot_open_endless_types() -> None:
    publisher = Publisher()
    with pytest.raises(ProtocolError):
        for i in range(100):
            ask(publisher, f"type.googleapis.com/x.y.Z{i}")


def test_an_envoy_gets_the_good_part_of_a_refused_response_again_because_it_forgets_it() -> None:
    publisher = Publisher({LDS: {name: entry("1") for name in ("a", "b", "b-2")}}, forgetful=True)
    again = answer(publisher, ask(publisher, LDS).responses[0], "Error adding listener(s) b: no such filter")
    assert told(again) == [("Listener", ["a", "b-2"], [])]
    assert told(answer(publisher, again.responses[0])) == []
    assert told(publisher.on_snapshot({LDS: {**publisher.snapshot[LDS], "b": entry("2")}})) == [("Listener", ["b"], [])]


def test_an_error_that_names_nothing_is_narrowed_down_until_the_bad_one_stands_alone() -> None:
    names = [f"n{i:02}" for i in range(16)]
    publisher = Publisher({LDS: {name: entry("1") for name in names}}, forgetful=True)
    waiting, refused, accepted, sent = list(ask(publisher, LDS).responses), [], set(), 0
    while waiting:
        response = waiting.pop(0)
        sent += 1
        got = [resource.name for resource in response.resources]
        reaction = answer(publisher, response, "internal error" if "n07" in got else "")
        waiting += reaction.responses
        if "n07" not in got:
            accepted |= set(got)
        elif len(got) == 1:
            refused.append(got)
    assert (refused, sorted(accepted)) == ([["n07"]], [n for n in names if n != "n07"])
    assert sent <= 9
    assert publisher.settled
