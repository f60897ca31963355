"""ADS over the TLS front with a real gRPC client: subscribe, update, ACK, NACK, reconnect, refuse, end."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from envoy.config.core.v3.base_pb2 import Node
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest

from meshagent.protocol.entry import Entry, Snapshot
from meshagent.protocol.publisher import Verdict
from meshagent.protocol.subscriber import Subscriber
from meshagent.protocol.types import CDS, EDS, NDS, SDS
from meshagent.runtime.latest import Latest
from meshagent.transport.ads_server import AdsServer, Ending
from meshagent.transport.channel import delta_ads_stream, unix_channel
from meshagent.transport.grpc_server import Call, RefusedCallError, add_methods, bind_unix, local_peer, new_server
from meshagent.transport.methods import DELTA_SECRETS
from meshagent.transport.unix import Access, remove
from tests.transport.mesh import Hub, hub

NODE = Node(id="sidecar~10.0.0.1~web.default~default.svc.mesh.internal")


@dataclass
class Session:
    """A real session whose snapshot the test sets."""

    node: Node
    call: Call
    snapshot: Latest[Snapshot]
    ended: Latest[Ending | None] = field(default_factory=lambda: Latest[Ending | None](None))
    verdicts: list[Verdict] = field(default_factory=list)
    wishes: list[tuple[str, bool, frozenset[str]]] = field(default_factory=list)
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    def on_verdict(self, verdict: Verdict) -> None:
        self.verdicts.append(verdict)

    def on_subscription(self, type_url: str, wildcard: bool, names: frozenset[str]) -> None:
        self.wishes.append((type_url, wildcard, names))

    async def close(self) -> None:
        self.closed.set()


class Control:
    """The server's side of a test: one snapshot for all, the sessions that came."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = Latest[Snapshot](snapshot)
        self.sessions: list[Session] = []
        self.server = AdsServer(self.open, first_message_seconds=0.5)

    async def open(self, node: Node, call: Call) -> Session:
        if node.id == "refused":
            raise RefusedCallError(grpc.StatusCode.PERMISSION_DENIED, "not-yours", "another host's name")
        self.sessions.append(Session(node, call, self.snapshot))
        return self.sessions[-1]


def entry(text: str) -> Entry:
    return Entry(f"v-{text}", text.encode())


@contextlib.asynccontextmanager
async def control(snapshot: Snapshot) -> AsyncIterator[tuple[Control, Hub]]:
    controller = Control(snapshot)
    async with hub(controller.server.handlers()) as running:
        yield controller, running


async def send(stream: Any, requests: list[DeltaDiscoveryRequest]) -> None:
    for request in requests:
        await stream.write(request)


async def take(stream: Any, subscriber: Subscriber, bad: dict[str, str] | None = None) -> list[str]:
    """Receive one response and judge it; names of what changed and of what went ('-name')."""
    received = subscriber.receive(await asyncio.wait_for(stream.read(), 30))
    await send(stream, subscriber.reject(received, bad or {}))
    return [*received.changed, *(f"-{name}" for name in received.removed)]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - the condition is of the code under test, which has no event for it
            await asyncio.sleep(0.005)


async def status_of(stream: Any) -> grpc.StatusCode:
    with contextlib.suppress(grpc.aio.AioRpcError):
        while await asyncio.wait_for(stream.read(), 30) is not vars(grpc.aio)["EOF"]:
            pass
    status: grpc.StatusCode = await stream.code()
    return status


def test_a_session_follows_its_snapshot_and_hears_verdicts_and_wishes() -> None:
    async def scenario() -> None:
        async with control({CDS: {"a": entry("1")}, EDS: {"a": entry("1")}}) as (controller, running):
            identity = running.authority.identity(serial=0x77)
            async with running.channel(identity) as channel:
                stream, subscriber = delta_ads_stream(channel), Subscriber(NODE, [CDS], {EDS: ["a"]})
                await send(stream, subscriber.open())
                assert [await take(stream, subscriber) for _ in range(2)] == [["a"], ["a"]]
                controller.snapshot.set({CDS: {"b": entry("1")}, EDS: {}})
                answers = [await take(stream, subscriber), await take(stream, subscriber, {"a": "in use"})]
                answers.append(await take(stream, subscriber))
                assert answers == [["b"], ["-a"], ["-a"]]
                (session,) = controller.sessions
                await until(lambda: len(session.verdicts) == 5)
                assert [v.error for v in session.verdicts] == ["", "", "", "a: in use", ""]
                assert (session.call.peer.serial, session.node.id) == ("77", NODE.id)
                assert session.wishes == [(CDS, True, frozenset()), (EDS, False, frozenset("a"))]
            await asyncio.wait_for(session.closed.wait(), 30)
            assert controller.server.streams == 0

    asyncio.run(scenario())


def test_a_reconnect_gets_only_what_changed_meanwhile() -> None:
    async def scenario() -> None:
        async with control({CDS: {"a": entry("1"), "b": entry("1")}}) as (controller, running):
            subscriber = Subscriber(NODE, [CDS])
            for expected in (["a", "b"], ["b"]):
                async with running.channel() as channel:
                    stream = delta_ads_stream(channel)
                    await send(stream, subscriber.open())
                    assert await take(stream, subscriber) == expected
                controller.snapshot.set({CDS: {"a": entry("1"), "b": entry("2")}})

    asyncio.run(scenario())


def test_nothing_is_sent_or_removed_before_the_snapshot_is_known() -> None:
    async def scenario() -> None:
        async with control({}) as (controller, running), running.channel() as channel:
            stream, subscriber = delta_ads_stream(channel), Subscriber(NODE, [CDS])
            subscriber.restore({CDS: {"a": entry("1")}})
            await send(stream, subscriber.open())
            await until(lambda: bool(controller.sessions) and bool(controller.sessions[0].wishes))
            controller.snapshot.set({CDS: {"a": entry("1"), "b": entry("1")}})
            assert await take(stream, subscriber) == ["b"]

    asyncio.run(scenario())


def test_a_slow_client_gets_the_newest_state_not_the_history() -> None:
    async def scenario() -> None:
        first = {NDS: {"nametable": entry("0")}}
        async with control(first) as (controller, running), running.channel() as channel:
            stream, subscriber = delta_ads_stream(channel), Subscriber(NODE, [NDS])
            await send(stream, subscriber.open())
            await until(lambda: bool(controller.sessions))
            for i in range(1, 500):
                controller.snapshot.set({NDS: {"nametable": Entry(f"v-{i}", bytes(100_000))}})
                await asyncio.sleep(0)
            received = 0
            while subscriber.resources.get(NDS, {}).get("nametable", entry("0")).version != "v-499":
                await take(stream, subscriber)
                received += 1
            assert received < 60

    asyncio.run(scenario())


def test_a_refused_client_is_told_why() -> None:
    async def scenario() -> grpc.StatusCode:
        async with control({}) as (_, running), running.channel() as channel:
            stream = delta_ads_stream(channel)
            await stream.write(DeltaDiscoveryRequest(type_url=CDS, node=Node(id="refused")))
            return await status_of(stream)

    assert asyncio.run(scenario()) is grpc.StatusCode.PERMISSION_DENIED


INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("first", "status"),
    [
        (None, grpc.StatusCode.DEADLINE_EXCEEDED),
        (DeltaDiscoveryRequest(type_url=CDS), INVALID),
        (DeltaDiscoveryRequest(node=NODE), INVALID),
        (DeltaDiscoveryRequest(node=NODE, type_url=CDS, resource_names_subscribe=[""]), INVALID),
        (DeltaDiscoveryRequest(node=NODE, type_url="x" * (9 << 20)), grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
    ids=["silent", "no node", "no type", "empty name", "too big"],
)
def test_a_client_that_breaks_the_rules_is_ended(first: DeltaDiscoveryRequest | None, status: grpc.StatusCode) -> None:
    async def scenario() -> tuple[grpc.StatusCode, bool]:
        async with control({CDS: {}}) as (controller, running), running.channel() as channel:
            stream = delta_ads_stream(channel)
            if first is not None:
                await stream.write(first)
            got = await status_of(stream)
            return got, all(session.closed.is_set() for session in controller.sessions)

    assert asyncio.run(scenario()) == (status, True)


def test_the_server_can_end_a_session() -> None:
    async def scenario() -> grpc.StatusCode:
        async with control({CDS: {}}) as (controller, running), running.channel() as channel:
            stream = delta_ads_stream(channel)
            await send(stream, Subscriber(NODE, [CDS]).open())
            await until(lambda: bool(controller.sessions))
            controller.sessions[0].ended.set((grpc.StatusCode.PERMISSION_DENIED, "revoked"))
            status = await status_of(stream)
            await asyncio.wait_for(controller.sessions[0].closed.wait(), 30)
            return status

    assert asyncio.run(scenario()) is grpc.StatusCode.PERMISSION_DENIED


def test_secrets_and_discovery_are_served_on_a_unix_socket_with_owner_and_mode(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "sds.sock"
        controller, server = Control({SDS: {"default": entry("1")}}), new_server()
        add_methods(server, controller.server.handlers(DELTA_SECRETS), local_peer)
        made = bind_unix(server, path, Access(0o600))
        await server.start()
        assert path.stat().st_mode & 0o777 == 0o600
        async with unix_channel(path) as channel:
            stream, subscriber = (
                delta_ads_stream(channel, method=DELTA_SECRETS),
                Subscriber(NODE, [], {SDS: ["default"]}),
            )
            await send(stream, subscriber.open())
            assert await take(stream, subscriber) == ["default"]
        await server.stop(0)
        remove(path, made)

    asyncio.run(scenario())
    assert not list(tmp_path.iterdir())
