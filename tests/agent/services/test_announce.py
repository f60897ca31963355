import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address

from meshagent.agent.services.announce import Announcer, HostFacts, build_announcement
from meshagent.agent.services.target import Target, Where
from meshagent.model.condition import Condition, Severity
from meshagent.model.posture import Posture
from meshagent.model.service import DeclaredService, ServiceHealth
from meshagent.protocol.announce import announcement_message, parse_announcement
from meshagent.runtime.latest import Latest

V4 = ip_address("10.0.0.5")
FACTS = HostFacts("boot", (V4,), Posture.PERMISSIVE, "eu/dc1", "0.1.0", "1.40.0")
WEB = DeclaredService("web", 80, 8080)
DB = DeclaredService("db", 3306, 3306, site="us/dc2")
TARGETS = {"web": Target(Where.WILDCARD, V4, V4), "db": Target(Where.LOOPBACK, ip_address("127.0.0.1"), V4)}
CONDITION = Condition("clock-skew", Severity.WARNING, "t", "x", datetime(2030, 1, 1, tzinfo=UTC))


def test_an_announcement_says_where_each_service_is_and_how_it_does() -> None:
    said = build_announcement(FACTS, (WEB, DB), TARGETS, {"web": ServiceHealth(True)}, [CONDITION])
    web, db = said.services
    assert (web.target_address, web.health.healthy, web.declared.site) == (V4, True, "eu/dc1")
    assert (str(db.target_address), db.health.reason, db.declared.site) == ("127.0.0.1", "not checked yet", "us/dc2")
    assert said.conditions[0].code == "clock-skew"
    again = parse_announcement(announcement_message(said))
    assert not again.refused and [s.declared.name for s in again.services] == ["web", "db"]


def test_a_service_not_located_yet_waits_and_a_posture_without_inbound_announces_none() -> None:
    assert build_announcement(FACTS, (WEB,), {}, {}).services == ()
    assert build_announcement(replace(FACTS, posture=Posture.OUTBOUND), (WEB,), TARGETS, {}).services == ()


def test_each_change_is_published_and_what_says_nothing_new_is_not() -> None:
    async def story() -> None:
        facts, services = Latest(HostFacts()), Latest((WEB,))
        health: Latest[Mapping[str, ServiceHealth]] = Latest({})
        targets: Latest[Mapping[str, Target]] = Latest(TARGETS)
        announcer = Announcer(facts, services, targets, health, Latest(()))
        assert announcer.announcement.value is None  # no address yet
        running = asyncio.create_task(announcer.run())
        async with asyncio.timeout(30):
            facts.set(FACTS)
            said = await announcer.announcement.newer(0)
            assert said and said.addresses == (V4,) and not said.services[0].health.healthy
            health.set({"web": ServiceHealth(True)})
            said = await announcer.announcement.newer(1)
            assert said and said.services[0].health.healthy
            health.set({"web": ServiceHealth(True), "undeclared": ServiceHealth(False)})
            facts.set(replace(FACTS, addresses=()))
            await asyncio.sleep(0)
            facts.set(replace(FACTS, addresses=(ip_address("10.0.0.6"),)))
            said = await announcer.announcement.newer(2)
            assert said and str(said.addresses[0]) == "10.0.0.6"
        assert announcer.announcement.version == 3
        running.cancel()

    asyncio.run(story())
