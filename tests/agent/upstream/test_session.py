"""The session over a control plane in memory that is made of the real publisher."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta

from envoy.config.core.v3.base_pb2 import Node

from meshagent.agent.upstream.session import Session
from meshagent.model.address import HostPort
from meshagent.model.identity import Identity
from meshagent.protocol.entry import Entry
from meshagent.protocol.subscriber import Received, Subscriber
from meshagent.protocol.types import CDS, EDS, LDS, RDS
from meshagent.runtime.clock import SystemClock
from meshagent.runtime.latest import Latest
from tests.fakes.authority import Authority
from tests.fakes.control_plane import FakeControlPlane
from tests.fakes.eventually import eventually
from tests.fakes.signed import fresh_identity

FIRST, SECOND = HostPort("one", 15012), HostPort("two", 15012)


class Host:
    """A session with a judge that takes everything, but for names in ``refuse``; ``hold`` delays its verdicts."""

    def __init__(self, plane: FakeControlPlane, life: timedelta = timedelta(days=7)) -> None:
        self.refuse: dict[str, str] = {}
        self.hold = asyncio.Event()
        self.hold.set()
        self.identity: Latest[Identity] = Latest(fresh_identity(Authority(), life=life))
        self.subscriber = Subscriber(Node(id="n"), [CDS, LDS], {EDS: (), RDS: ()})
        self.wanted: Latest[Mapping[str, frozenset[str]]] = Latest({EDS: frozenset()})
        self.session = Session(
            self.subscriber,
            self.judge,
            self.wanted,
            plane.dial,
            [FIRST, SECOND],
            self.identity,
            SystemClock(),
            dice=lambda: 0.0,
        )

    async def judge(self, received: Received) -> Mapping[str, str]:
        await self.hold.wait()
        return {name: self.refuse[name] for name in received.changed if name in self.refuse}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Host"]:
        task = asyncio.create_task(self.session.run())
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def test_a_stream_that_ends_is_followed_by_one_that_says_what_is_held_and_gets_only_what_is_new() -> None:
    async def story() -> None:
        plane = FakeControlPlane({CDS: {"a": Entry("1", b"")}, LDS: {}})
        async with Host(plane).running() as host:
            await eventually(
                lambda: host.session.state.value.connected and "a" in host.subscriber.resources.get(CDS, {})
            )
            plane.close_streams()
            plane.snapshot = {CDS: {"a": Entry("1", b""), "b": Entry("1", b"")}, LDS: {}}
            await eventually(lambda: "b" in host.subscriber.resources[CDS])
            first = next(r for r in plane.streams[0].requests if r.type_url == CDS)
            assert dict(first.initial_resource_versions) == {"a": "1"}
            assert first.node.id == "n"
            assert plane.dials == [FIRST, FIRST]

    asyncio.run(story())


def test_the_next_address_is_tried_when_one_refuses_and_the_state_says_where_it_is_connected() -> None:
    async def story() -> None:
        plane = FakeControlPlane({CDS: {}, LDS: {}})
        plane.down = {FIRST}
        async with Host(plane).running() as host:
            await eventually(lambda: host.session.state.value.connected)
            assert host.session.state.value.address == SECOND
            assert plane.dials == [FIRST, SECOND]

    asyncio.run(story())


def test_while_every_address_is_away_the_state_tells_why_and_the_session_comes_back_by_itself() -> None:
    async def story() -> None:
        plane = FakeControlPlane({CDS: {}, LDS: {}})
        plane.down = {FIRST, SECOND}
        async with Host(plane).running() as host:
            await eventually(lambda: len(plane.dials) >= 4)
            assert not host.session.state.value.connected
            assert "refuses" in host.session.state.value.last_error
            plane.down = set()
            await eventually(lambda: host.session.state.value.connected)
            assert host.session.state.value.last_error == ""

    asyncio.run(story())


def test_names_are_asked_for_when_they_are_wanted_and_dropped_when_they_are_not() -> None:
    async def story() -> None:
        plane = FakeControlPlane({CDS: {}, LDS: {}, EDS: {"a": Entry("1", b""), "b": Entry("1", b"")}})
        async with Host(plane).running() as host:
            await eventually(lambda: host.session.state.value.connected)
            host.wanted.set({EDS: frozenset({"a", "b"})})
            await eventually(lambda: set(host.subscriber.resources.get(EDS, ())) == {"a", "b"})
            host.wanted.set({EDS: frozenset({"b"})})
            await eventually(lambda: set(host.subscriber.resources[EDS]) == {"b"})
            plane.close_streams()
            await eventually(lambda: len(plane.dials) == 2 and plane.streams)
            await eventually(lambda: any(r.type_url == EDS for r in plane.streams[0].requests))
            again = next(r for r in plane.streams[0].requests if r.type_url == EDS)
            assert list(again.resource_names_subscribe) == ["b"]

    asyncio.run(story())


def test_a_refused_resource_is_named_to_the_control_plane_with_the_reason() -> None:
    async def story() -> None:
        plane = FakeControlPlane({CDS: {"good": Entry("1", b""), "bad": Entry("1", b"")}, LDS: {}})
        host = Host(plane)
        host.refuse = {"bad": "no such filter"}
        async with host.running():
            await eventually(lambda: any(v.error for v in plane.verdicts))
            assert [v.error for v in plane.verdicts if v.error] == ["bad: no such filter"]
            assert set(host.subscriber.resources[CDS]) == {"good"}

    asyncio.run(story())


def test_what_was_being_judged_when_the_stream_broke_is_not_forgotten() -> None:
    """Else the removal of such a resource, while nobody is connected, would never be heard of."""

    async def story() -> None:
        plane = FakeControlPlane({CDS: {"a": Entry("1", b"")}, LDS: {}})
        host = Host(plane)
        host.hold.clear()
        async with host.running():
            await eventually(lambda: host.session.state.value.connected)
            plane.close_streams()
            plane.snapshot = {CDS: {}, LDS: {}}
            await eventually(lambda: len(plane.dials) == 2 and plane.streams, 5)
            await eventually(lambda: any(r.type_url == CDS for r in plane.streams[0].requests))
            first = next(r for r in plane.streams[0].requests if r.type_url == CDS)
            assert dict(first.initial_resource_versions) == {"a": "1"}
            host.hold.set()
            await eventually(lambda: host.subscriber.resources[CDS] == {})

    asyncio.run(story())


def test_a_new_certificate_reopens_the_stream_only_when_the_old_one_is_about_to_expire() -> None:
    async def story(life: timedelta, reopened: bool) -> None:
        plane = FakeControlPlane({CDS: {}, LDS: {}})
        async with Host(plane, life=life).running() as host:
            await eventually(lambda: host.session.state.value.connected)
            newer = fresh_identity(Authority(), now=datetime.now(UTC))
            host.identity.set(newer)
            for _ in range(20):
                await asyncio.sleep(0)
            await asyncio.sleep(0.05)
            assert (len(plane.dials) > 1) is reopened
            if reopened:
                await eventually(lambda: plane.streams and plane.streams[0].identity is newer)

    asyncio.run(story(timedelta(days=7), False))
    asyncio.run(story(timedelta(minutes=4), True))
