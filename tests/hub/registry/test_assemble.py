"""The mesh from hosts, resources and addresses."""

import random
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

from meshagent.hub.registry.assemble import LiveHost, MeshFacts, assemble
from meshagent.hub.state import EntryPort, MeshPort, ResourceViews, ServiceEntryView, WorkloadView
from meshagent.model.posture import Posture
from meshagent.model.service import ServiceProtocol
from meshagent.protocol.announce import AnnouncedService
from tests.hub.hosts import announced, announced_service, host_row

CACHE = "cache.default.mesh.internal"
ID = "spiffe://mesh.internal/ns/default/sa/cache"
TCP = ServiceProtocol.TCP


def live(
    name: str, *services: AnnouncedService, address: str = "10.0.0.1", account: str = "cache", **changes: Any
) -> LiveHost:
    said = announced(*services, address=address)
    return replace(LiveHost(host_row(name, account), said, services, connected=True), **changes)


def facts(*hosts: LiveHost, **resources: object) -> MeshFacts:
    indexes = {CACHE: 1, "web.default.mesh.internal": 2, "legacy.example.com": 3}
    return MeshFacts("mesh.internal", "mesh.internal", "istio-system", hosts, indexes, ResourceViews(**resources))  # type: ignore[arg-type]


def entry(**changes: object) -> ServiceEntryView:
    fields = {
        "namespace": "default",
        "name": "e",
        "hosts": (CACHE,),
        "ports": (EntryPort(6379, TCP, "redis"),),
        "mesh": True,
    }
    return ServiceEntryView(**{**fields, **changes})  # type: ignore[arg-type]


def test_an_announced_service_is_a_service_with_one_endpoint_per_host() -> None:
    one, two = (
        live("cache-1", announced_service()),
        live("cache-2", announced_service(healthy=False), address="10.0.0.2"),
    )
    (service,) = assemble(facts(one, two)).services
    assert service.host == CACHE and service.ports == (MeshPort(6379, TCP),) and service.service_accounts == (ID,)
    assert (str(service.virtual4), str(service.virtual6)) == ("240.240.0.1", "2001:2::1")
    assert [(e.host_name, e.healthy) for e in service.endpoints] == [("cache-1", True), ("cache-2", False)]
    assert service.endpoints[0].labels == (("app", "cache"),) and service.endpoints[0].target_address == "127.0.0.1"


def test_equal_meshes_are_equal_whatever_the_order_of_the_news() -> None:
    hosts = [live(f"cache-{n}", announced_service(), address=f"10.0.0.{n}") for n in range(1, 6)]
    first = assemble(facts(*hosts))
    for seed in range(5):
        random.Random(seed).shuffle(hosts)
        assert assemble(facts(*hosts)) == first


def test_an_explicit_entry_takes_the_name_over_and_selects_announced_workloads() -> None:
    chosen = entry(selector=(("app", "cache"),), addresses=(ip_address("10.9.9.9"),))
    (service,) = assemble(
        facts(live("cache-1", announced_service(target_port=7000)), service_entries=(chosen,))
    ).services
    assert service.claimed == (ip_address("10.9.9.9"),) and str(service.virtual4) == "240.240.0.1"
    assert [(e.host_name, e.target_port, e.spiffe_id) for e in service.endpoints] == [("cache-1", 7000, ID)]


def test_an_entry_outside_the_mesh_is_reached_in_plain_text() -> None:
    outside = entry(mesh=False, selector=(("app", "cache"),))
    (service,) = assemble(facts(live("cache-1", announced_service()), service_entries=(outside,))).services
    assert not service.mtls and service.service_accounts == ()
    assert (service.endpoints[0].spiffe_id, service.endpoints[0].host_name) == ("", "")


def test_the_port_on_the_wire_is_the_workloads_then_the_target_port_then_the_number() -> None:
    places = (
        WorkloadView("default", "a", ip_address("10.0.1.1"), ports=(("redis", 7001),)),
        WorkloadView("default", "b", ip_address("10.0.1.2")),
    )
    with_target = entry(ports=(EntryPort(6379, TCP, "redis", 7002), EntryPort(80, TCP, "web")), endpoints=places)
    (service,) = assemble(facts(service_entries=(with_target,))).services
    wire = {(str(e.addresses[0]), e.port): e.target_port for e in service.endpoints}
    assert wire == {("10.0.1.1", 6379): 7001, ("10.0.1.2", 6379): 7002, ("10.0.1.1", 80): 80, ("10.0.1.2", 80): 80}


def test_a_written_workload_is_served_by_the_enrolled_host_that_has_its_address_and_identity() -> None:
    at_cache = WorkloadView("default", "w", ip_address("10.0.0.1"), labels=(("app", "old"),), service_account="cache")
    stranger = WorkloadView("default", "x", ip_address("10.0.0.1"), labels=(("app", "old"),), service_account="web")
    plain = WorkloadView("default", "y", ip_address("10.0.0.1"), labels=(("app", "old"),))
    state = assemble(
        facts(
            live("cache-1"),
            service_entries=(entry(selector=(("app", "old"),)),),
            workload_entries=(at_cache, stranger, plain),
        )
    )
    hosts = {e.spiffe_id: e.host_name for e in state.services[0].endpoints}
    web = "spiffe://mesh.internal/ns/default/sa/web"
    assert hosts == {ID: "cache-1", web: "", "": ""}  # a stranger's identity never becomes this host's


def test_a_selector_sees_its_own_namespace_only() -> None:
    other = entry(namespace="other", selector=(("app", "cache"),))
    (service,) = assemble(facts(live("cache-1", announced_service()), service_entries=(other,))).services
    assert service.endpoints == ()


def test_of_two_entries_for_one_name_or_one_address_the_older_holds() -> None:
    claimed = (ip_address("10.9.9.9"),)
    older = entry(name="older", hosts=("legacy.example.com",), addresses=claimed)
    newer = entry(name="newer", hosts=("legacy.example.com", CACHE), addresses=claimed)
    other_port = entry(
        name="third", hosts=("web.default.mesh.internal",), ports=(EntryPort(80, TCP, "w"),), addresses=claimed
    )
    state = assemble(facts(service_entries=(older, newer, other_port)))
    assert {s.host: s.claimed for s in state.services} == {
        "legacy.example.com": claimed,
        CACHE: (),
        "web.default.mesh.internal": claimed,
    }


def test_endpoints_come_as_they_first_served_the_name_whatever_they_are_called() -> None:
    hosts = [live(name, announced_service(), since={CACHE: at}) for name, at in (("a", 3.0), ("b", 1.0), ("c", 2.0))]
    (service,) = assemble(facts(*hosts)).services
    assert [e.host_name for e in service.endpoints] == ["b", "c", "a"]
    chosen = entry(selector=(("app", "cache"),))
    (service,) = assemble(facts(*hosts, service_entries=(chosen,))).services
    assert [e.host_name for e in service.endpoints] == ["b", "c", "a"]


def test_written_endpoints_keep_the_order_they_are_written_in() -> None:
    places = tuple(WorkloadView("default", name, ip_address(f"10.0.1.{n}")) for name, n in (("x", 9), ("y", 3)))
    (service,) = assemble(facts(service_entries=(entry(endpoints=places),))).services
    assert [str(e.addresses[0]) for e in service.endpoints] == ["10.0.1.9", "10.0.1.3"]


def test_a_host_whose_posture_lets_nobody_in_is_no_endpoint_but_its_service_stays() -> None:
    closed = live("cache-1", announced_service())
    assert closed.announced is not None
    for posture, names in ((Posture.OUTBOUND, ["cache-2"]), (Posture.OBSERVE, ["cache-2"]), (Posture.STRICT, None)):
        one = replace(closed, announced=replace(closed.announced, posture=posture))
        two = live("cache-2", announced_service(), address="10.0.0.2")
        for resources in ({}, {"service_entries": (entry(selector=(("app", "cache"),)),)}):
            (service,) = assemble(facts(one, two, **resources)).services
            assert [e.host_name for e in service.endpoints] == (names or ["cache-1", "cache-2"])
            (alone,) = assemble(facts(one, **resources)).services
            assert alone.service_accounts == (ID,) and len(alone.endpoints) == (0 if names else 1)
