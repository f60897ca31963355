"""The mesh assembled change by change is the mesh assembled at once; what did not change stays the same object."""

import random
import time
from dataclasses import replace
from ipaddress import ip_address

import pytest

from meshagent.hub.registry.assemble import LiveHost, MeshFacts, assemble
from meshagent.hub.registry.incremental import Assembler
from meshagent.hub.state import EntryPort, ResourceViews, ServiceEntryView, WorkloadView
from meshagent.model.posture import Posture
from meshagent.model.service import ServiceProtocol
from tests.hub.hosts import announced, announced_service, host_row

NAMES = ["a", "b", "c", "d"]
INDEXES = {f"{name}.default.mesh.internal": number for number, name in enumerate(NAMES, 1)} | {"legacy.example.com": 9}


def some_host(dice: random.Random, number: int) -> LiveHost:
    services = tuple(
        announced_service(name, 80 + NAMES.index(name), healthy=dice.random() < 0.8, labels=(("v", dice.choice("12")),))
        for name in dice.sample(NAMES, dice.randrange(3))
    )
    said = announced(*services, address=f"10.0.0.{number if dice.random() < 0.9 else 99}")
    said = replace(said, posture=dice.choice([Posture.PERMISSIVE] * 3 + [Posture.OUTBOUND]))
    row = host_row(f"h{number}", dice.choice(["x", "y"]), number)
    if dice.random() < 0.1:
        return LiveHost(row)
    since = {name: dice.random() for name in INDEXES}
    return LiveHost(row, said, services, dice.random() < 0.7, dice.random() < 0.2, since)


def some_resources(dice: random.Random) -> ResourceViews:
    tcp = EntryPort(80, ServiceProtocol.TCP, "p")
    address = ip_address(f"10.0.0.{dice.randrange(1, 6)}")
    place = WorkloadView("default", "w", address, labels=(("app", "a"), ("v", "1")), service_account="x")
    entries = (
        ServiceEntryView("default", "one", ("a.default.mesh.internal",), (tcp,), mesh=True, selector=(("v", "1"),)),
        ServiceEntryView("default", "two", ("legacy.example.com",), (tcp,), (address,), mesh=True, endpoints=(place,)),
        ServiceEntryView(
            "default", "three", ("b.default.mesh.internal",), (tcp,), (address,), selector=(("app", "b"),)
        ),
    )
    workloads = (place,) if dice.random() < 0.5 else ()
    return ResourceViews(tuple(e for e in entries if dice.random() < 0.5), workloads)


@pytest.mark.parametrize("seed", range(25))
def test_over_any_history_it_is_the_mesh_assembled_at_once(seed: int) -> None:
    dice = random.Random(seed)
    hosts: dict[int, LiveHost] = {}
    indexes, resources = dict(INDEXES), ResourceViews()
    assembler = Assembler()
    for _ in range(60):
        number = dice.randrange(1, 6)
        if dice.random() < 0.15:
            hosts.pop(number, None)
        else:
            hosts[number] = some_host(dice, number)
        if dice.random() < 0.15:
            resources = some_resources(dice)
        if dice.random() < 0.05:
            indexes[dice.choice(list(indexes))] = dice.randrange(100, 1000)
        facts = MeshFacts(
            "mesh.internal", "mesh.internal", "istio-system", tuple(hosts.values()), dict(indexes), resources
        )
        before = assembler.update(facts)
        assert before == assemble(facts)
        again = assembler.update(replace(facts, hosts=tuple(replace(host) for host in facts.hosts)))
        assert again == before and all(new is old for new, old in zip(again.services, before.services, strict=True))


def fleet(hosts: int) -> MeshFacts:
    indexes = {f"s{n}.default.mesh.internal": n + 1 for n in range(hosts)}
    said = [announced(announced_service(f"s{n}", 80), address=f"10.1.{n >> 8}.{n & 255}") for n in range(hosts)]
    lives = [LiveHost(host_row(f"h{n}", f"a{n}", n + 1), each, each.services, True) for n, each in enumerate(said)]
    return MeshFacts("mesh.internal", "mesh.internal", "istio-system", tuple(lives), indexes)


def test_a_change_of_one_service_among_a_thousand_costs_a_fraction_of_the_whole() -> None:
    facts = fleet(1000)
    assembler = Assembler()
    first = assembler.update(facts)
    changed, whole = [], []
    for number in range(7):
        sick = (announced_service(f"s{number}", 80, healthy=False),)
        hosts = list(facts.hosts)
        hosts[number] = replace(hosts[number], accepted=sick)
        facts = replace(facts, hosts=tuple(hosts))
        began = time.process_time()
        state = assembler.update(facts)
        between = time.process_time()
        assert assemble(facts) == state
        changed.append(between - began)
        whole.append(time.process_time() - between)
    assert sum(new is old for new, old in zip(state.services, first.services, strict=True)) == 1000 - 7
    assert sorted(changed)[3] < sorted(whole)[3] / 5
