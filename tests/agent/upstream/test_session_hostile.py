"""A control plane that is broken or hostile, over real connections: it can't crash, fill or busy an agent."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from envoy.config.core.v3.base_pb2 import Node
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryResponse

from meshagent.agent.upstream.dial import Dialer
from meshagent.agent.upstream.session import Session
from meshagent.protocol.entry import Entry
from meshagent.protocol.subscriber import Received, Subscriber
from meshagent.protocol.types import CDS, EDS, LDS, NDS
from meshagent.runtime.clock import SystemClock
from meshagent.runtime.latest import Latest
from meshagent.transport.grpc_server import Call, Stream
from meshagent.transport.methods import DELTA_ADS
from tests.fakes.eventually import eventually
from tests.fakes.signed import fresh_identity
from tests.transport.mesh import hub

HELD = {"a": Entry("1", b"")}


class Junk:
    """Goes out as it is."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def SerializeToString(self, deterministic: bool = False) -> bytes:  # noqa: N802 - what protobuf calls it
        return self._data


def response(type_url: str, nonce: str, **resources: int) -> DeltaDiscoveryResponse:
    """Resources by name, with bodies of so many bytes."""
    message = DeltaDiscoveryResponse(type_url=type_url, nonce=nonce)
    for name, size in resources.items():
        resource = message.resources.add(name=name, version=nonce)
        resource.resource.type_url = type_url
        resource.resource.value = bytes(size)
    return message


def endless_names() -> Iterator[Any]:
    for number in itertools.count():
        yield response(CDS, f"n{number}", **{f"c{number}-{i}": 0 for i in range(300)})


def endless_bytes() -> Iterator[Any]:
    for number in itertools.count():
        yield response(CDS, f"n{number}", **{f"c{number}": 1 << 20})


def endless_answers() -> Iterator[Any]:
    for number in itertools.count():
        yield response(CDS, f"n{number}", a=10)


ATTACKS: dict[str, tuple[Callable[[], Iterator[Any]], str]] = {
    "garbage": (lambda: iter([Junk(b"\xff\xfe garbage")]), "bytes that are no message"),
    "nobody asked": (lambda: iter([response(NDS, "n", x=1)]), "which nobody asked for"),
    "no nonce": (lambda: iter([response(CDS, "", x=1)]), "without a usable nonce"),
    "endless names": (endless_names, "more than 1000"),
    "endless bytes": (endless_bytes, "more than 4 MiB"),
    "endless answers": (endless_answers, "without waiting for an answer"),
}


def resident() -> int:
    """MB of this process, agent and attacker together."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4 // 1024


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_ends_the_stream_within_bounds_and_what_was_held_stays(
    monkeypatch: pytest.MonkeyPatch, attack: str
) -> None:
    makes, said = ATTACKS[attack]
    monkeypatch.setattr("meshagent.protocol.subscriber.MAX_NAMES", 1_000)
    monkeypatch.setattr("meshagent.protocol.subscriber.MAX_HELD_BYTES", 4 << 20)

    async def story() -> None:
        streams = 0

        async def serve(context: Any, call: Call) -> None:
            nonlocal streams
            streams += 1
            await context.read()
            for message in makes():
                await context.write(message)
            await asyncio.Event().wait()

        async def judge(received: Received) -> dict[str, str]:
            return await asyncio.Event().wait() or {}  # as with a proxy that never answers

        async with hub([Stream(DELTA_ADS, serve)]) as running, session_to(running, judge) as session:
            before = resident()
            await eventually(lambda: session.state.value.last_error, 30)
            assert resident() - before < 150
            assert said in session.state.value.last_error
            assert said in session.state.value.violation
            assert "a" in session.held()
            assert sum(len(entry.body) for entry in session.held().values()) <= 4 << 20
            await eventually(lambda: streams >= 2, 30)  # and it comes back, without hurry
            assert streams <= 3

    asyncio.run(story())


def test_a_control_plane_that_mends_its_ways_is_taken_back_and_forgiven(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshagent.agent.upstream.session.QUIET_SECONDS", 0.2)

    async def story() -> None:
        streams = 0

        async def serve(context: Any, call: Call) -> None:
            nonlocal streams
            streams += 1
            await context.read()
            await context.write(response(LDS if streams == 1 else CDS, "n", b=3))
            await asyncio.Event().wait()

        async def judge(received: Received) -> dict[str, str]:
            return {}

        async with hub([Stream(DELTA_ADS, serve)]) as running, session_to(running, judge) as session:
            await eventually(lambda: session.state.value.violation, 30)
            await eventually(lambda: "b" in session.held(), 30)
            assert session.state.value.connected
            await eventually(lambda: not session.state.value.violation, 30)
            assert session.state.value.connected
            assert streams == 2

    asyncio.run(story())


class Running(Session):
    """A session that begins with something held."""

    def __init__(self, running: Any, judge: Callable[[Received], Awaitable[dict[str, str]]]) -> None:
        self._sub = Subscriber(Node(id="n"), [CDS], {EDS: ()})
        self._sub.restore({CDS: HELD})
        identity = Latest(fresh_identity(running.authority))
        dial = Dialer("hub.mesh.internal").ads
        super().__init__(
            self._sub, judge, Latest({}), dial, running.front.addresses, identity, SystemClock(), dice=lambda: 0.5
        )

    def held(self) -> Any:
        return self._sub.resources[CDS]

    async def __aenter__(self) -> "Running":
        self._task = asyncio.create_task(self.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert not self._task.done(), self._task
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def session_to(running: Any, judge: Callable[[Received], Awaitable[dict[str, str]]]) -> Running:
    """A running session towards a hub."""
    return Running(running, judge)
