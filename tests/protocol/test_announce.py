"""What a host says of itself survives the wire, and nonsense is refused by name."""

from collections.abc import Callable
from ipaddress import ip_address

import pytest

from meshagent.model.doors import Door
from meshagent.model.errors import UsageError
from meshagent.model.posture import Posture
from meshagent.model.service import DeclaredService, ServiceHealth, ServiceProtocol
from meshagent.protocol.announce import (
    Announced,
    AnnouncedCondition,
    AnnouncedService,
    ServiceAnswer,
    announcement_message,
    answer_message,
    parse_announcement,
    parse_answer,
)
from meshagent.protocol.pb import meshagent_v1_pb2 as pb


def service(name: str = "orders") -> AnnouncedService:
    declared = DeclaredService(
        name, 80, 8080, ServiceProtocol.HTTP, labels=(("version", "v2"),), weight=50, priority=1, site="dc1"
    )
    return AnnouncedService(declared, ip_address("127.0.0.1"), ServiceHealth(False, "connection refused"))


ANNOUNCED = Announced(
    generation=7,
    boot_id="b",
    addresses=(ip_address("10.0.0.7"), ip_address("2001:db8::7")),
    services=(service(), service("cart")),
    posture=Posture.STRICT,
    locality="eu/dc1",
    agent_version="0.1",
    envoy_version="1.40.0",
    conditions=(AnnouncedCondition("config-rejected", "error", "text"),),
    goodbye=True,
    leave=True,
    doors=frozenset({Door.BRIDGES, Door.INBOUND_TPROXY}),
)


def message() -> pb.Announcement:
    return announcement_message(ANNOUNCED)


def test_an_announcement_survives_the_wire() -> None:
    assert parse_announcement(pb.Announcement.FromString(message().SerializeToString())) == ANNOUNCED


def test_a_door_that_this_hub_does_not_know_is_left_out_alone() -> None:
    newer = message()
    newer.doors.extend(["trapdoor", "passthrough"])
    found = parse_announcement(newer).doors
    assert found == ANNOUNCED.doors
    assert all(isinstance(door, Door) for door in found)


def change(**fields: object) -> Callable[[pb.Announcement], None]:
    def apply(message: pb.Announcement) -> None:
        for name, value in fields.items():
            setattr(message.services[0], name, value)

    return apply


@pytest.mark.parametrize(
    "spoil",
    [
        change(name="Orders"),
        change(name=""),
        change(name="a" * 64),
        change(name="or;ders\n"),
        change(port=0),
        change(port=70_000),
        change(target_port=0),
        change(target_address="localhost"),
        change(target_address="0.0.0.0"),
        change(target_address="224.0.0.1"),
        change(protocol="udp"),
        change(weight=1_000_000),
        change(priority=1_000),
        change(site="x\ny"),
        lambda m: m.services[0].labels.update({"x": "y\n"}),
        lambda m: m.services[0].labels.update({str(i): "" for i in range(100)}),
        lambda m: m.services[0].labels.update({"x": "y" * 1_000}),
    ],
)
def test_a_service_that_makes_no_sense_is_refused_alone_and_by_name(spoil: Callable[[pb.Announcement], None]) -> None:
    spoiled = message()
    spoil(spoiled)
    parsed = parse_announcement(spoiled)
    assert [s.declared.name for s in parsed.services] == ["cart"]
    assert len(parsed.refused) == 1
    assert all("\n" not in text for item in parsed.refused.items() for text in item)


def test_a_service_announced_twice_counts_once() -> None:
    twice = message()
    twice.services.append(twice.services[0])
    parsed = parse_announcement(twice)
    assert [s.declared.name for s in parsed.services] == ["orders", "cart"]
    assert "twice" in parsed.refused["orders"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda m: m.addresses.append("10.0.0"),
        lambda m: m.addresses.append("127.0.0.1"),
        lambda m: m.addresses.append("::"),
        lambda m: m.ClearField("addresses"),
        lambda m: m.addresses.extend(["10.0.0.1"] * 100),
        lambda m: m.services.extend([m.services[0]] * 1_000),
        lambda m: setattr(m, "posture", "brave"),
        lambda m: setattr(m, "locality", "a\nb"),
        lambda m: setattr(m, "boot_id", "x" * 1_000),
    ],
)
def test_an_announcement_that_makes_no_sense_is_refused(spoil: Callable[[pb.Announcement], None]) -> None:
    spoiled = message()
    spoil(spoiled)
    with pytest.raises(UsageError) as caught:
        parse_announcement(spoiled)
    assert caught.value.code == "bad-announcement"


def test_the_answer_survives_the_wire_without_unreadable_addresses() -> None:
    answers = (
        ServiceAnswer("orders", True, "", "orders.default.mesh.internal", (ip_address("240.240.0.1"),)),
        ServiceAnswer("cart", False, "taken"),
    )
    sent = answer_message(7, answers, 1_000)
    assert (sent.generation, sent.unix_ms) == (7, 1_000)
    sent.services[0].virtual_addresses.append("nonsense")
    assert parse_answer(sent) == answers
