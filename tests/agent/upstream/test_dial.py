"""The real connections: gRPC over mutual TLS through a hub's front."""

import asyncio
from typing import Any

import grpc
import pytest
from envoy.config.core.v3.base_pb2 import Node

from meshagent.agent.identity.keys import build_csr, generate_workload_key
from meshagent.agent.upstream.announce import Announcer
from meshagent.agent.upstream.dial import Dialer
from meshagent.agent.upstream.session import Session
from meshagent.agent.upstream.signer import Signer
from meshagent.agent.upstream.state import UpstreamState
from meshagent.model.address import HostPort
from meshagent.model.errors import MeshagentError
from meshagent.model.identity import Identity
from meshagent.protocol.entry import Entry, Snapshot
from meshagent.protocol.pb.istio_ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from meshagent.protocol.pb.meshagent_v1_pb2 import Announcement, AnnouncementResult
from meshagent.protocol.publisher import Verdict
from meshagent.protocol.subscriber import Received, Subscriber
from meshagent.protocol.types import CDS, EDS
from meshagent.runtime.clock import SystemClock
from meshagent.runtime.latest import Latest
from meshagent.transport.ads_server import AdsServer, Ending
from meshagent.transport.grpc_server import Call, Stream, Unary
from meshagent.transport.methods import ANNOUNCE, CREATE_CERTIFICATE, DELTA_ADS
from tests.fakes.eventually import eventually
from tests.fakes.signed import WEB, answer, fresh_identity
from tests.transport.mesh import hub

NAME = "hub.mesh.internal"


class HubSession:
    """What a hub has for every host."""

    def __init__(self) -> None:
        self.snapshot: Latest[Snapshot] = Latest({CDS: {"a": Entry("1", b"")}})
        self.ended: Latest[Ending | None] = Latest(None)
        self.verdicts: list[Verdict] = []

    def on_verdict(self, verdict: Verdict) -> None:
        self.verdicts.append(verdict)

    def on_subscription(self, type_url: str, wildcard: bool, names: frozenset[str]) -> None: ...

    async def close(self) -> None: ...


def test_configuration_comes_over_mutual_tls_and_the_verdict_goes_back() -> None:
    async def story() -> None:
        session, callers = HubSession(), []

        async def opened(node: Node, call: Call) -> HubSession:
            callers.append(call.peer)
            return session

        async def judge(received: Received) -> dict[str, str]:
            return {}

        async with hub(AdsServer(opened).handlers()) as running:
            identity = Latest(fresh_identity(running.authority))
            subscriber = Subscriber(Node(id="n"), [CDS], {EDS: ()})
            agent = Session(
                subscriber,
                judge,
                Latest({}),
                Dialer(NAME).ads,
                running.front.addresses,
                identity,
                SystemClock(),
            )
            task = asyncio.create_task(agent.run())
            await eventually(lambda: session.verdicts)
            assert subscriber.resources[CDS] == {"a": Entry("1", b"")}
            assert agent.state.value.address == running.front.addresses[0]
            assert len(callers) == 1
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(story())


def test_streams_share_a_connection_until_one_of_them_ends() -> None:
    async def story() -> None:
        async def serve(context: Any, call: Call) -> None:
            await context.read()

        async with hub([Stream(DELTA_ADS, serve), Stream(ANNOUNCE, serve)]) as running:
            address, identity = running.front.addresses[0], fresh_identity(running.authority)
            dialer = Dialer(NAME)
            async with dialer.ads(address, identity):
                async with dialer.announce(address, identity):
                    assert running.front.connections == 1
                async with dialer.announce(address, identity):  # what broke a stream may be the connection
                    assert running.front.connections == 2
                    async with dialer.ads(address, fresh_identity(running.authority)):  # as somebody else
                        assert running.front.connections == 3
            await eventually(lambda: running.front.connections == 0)

    asyncio.run(story())


def test_a_hub_that_cancels_its_streams_does_not_end_the_session() -> None:
    async def story() -> None:
        opened = 0

        async def serve(context: Any, call: Call) -> None:
            nonlocal opened
            opened += 1
            await context.read()
            if opened == 1:
                await context.abort(grpc.StatusCode.CANCELLED, "going down")
            await asyncio.Event().wait()

        async def judge(received: Received) -> dict[str, str]:
            return {}

        async with hub([Stream(DELTA_ADS, serve)]) as running:
            identity = Latest(fresh_identity(running.authority))
            subscriber = Subscriber(Node(id="n"), [CDS])
            addresses = running.front.addresses
            agent = Session(
                subscriber, judge, Latest({}), Dialer(NAME).ads, addresses, identity, SystemClock(), dice=lambda: 0.0
            )
            task = asyncio.create_task(agent.run())
            await eventually(lambda: opened == 2)
            assert not task.done()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(story())


def test_a_server_that_is_not_our_hub_is_not_talked_to() -> None:
    async def story() -> None:
        async def opened(node: Node, call: Call) -> HubSession:
            raise AssertionError("reached")

        async with hub(AdsServer(opened).handlers()) as running, hub([]) as ours:
            address = running.front.addresses[0]
            identity = fresh_identity(ours.authority)
            with pytest.raises(MeshagentError) as caught:
                async with Dialer(NAME).ads(address, identity):
                    pass
            assert caught.value.code == "hub-unreachable"
            with pytest.raises(MeshagentError):
                async with Dialer("other.mesh.internal").ads(address, fresh_identity(running.authority)):
                    pass

    asyncio.run(story())


def test_an_address_where_nobody_listens_is_an_error_at_once() -> None:
    async def story() -> None:
        from tests.fakes.authority import Authority

        with pytest.raises(MeshagentError) as caught:
            async with asyncio.timeout(10), Dialer(NAME).ads(HostPort("127.0.0.1", 1), fresh_identity(Authority())):
                pass
        assert caught.value.code == "hub-unreachable"

    asyncio.run(story())


def test_a_csr_is_signed_and_a_refusal_is_told_apart() -> None:
    async def story() -> None:
        async def create(request: IstioCertificateRequest, call: Call) -> IstioCertificateResponse:
            if "BEGIN" not in request.csr:
                raise MeshagentError("bad-csr", "that is no CSR")
            return IstioCertificateResponse(cert_chain=answer(running.authority, request.csr))

        async with hub([Unary(CREATE_CERTIFICATE, create)]) as running:
            identity: Latest[Identity] = Latest(fresh_identity(running.authority))
            signer = Signer(Dialer(NAME).create_certificate, running.front.addresses, identity)
            chain = await signer.sign(build_csr(generate_workload_key(), WEB))
            assert chain[-1] == running.authority.root_pem
            with pytest.raises(MeshagentError) as caught:
                await signer.sign("junk")
            assert caught.value.code == "signing-refused"
            assert "that is no CSR" in caught.value.message

    asyncio.run(story())


def test_the_announcement_is_sent_again_when_it_changes_and_goodbye_is_confirmed() -> None:
    async def story() -> None:
        heard: list[Announcement] = []

        async def serve(context: Any, call: Call) -> None:
            while isinstance(message := await context.read(), Announcement):
                heard.append(message)
                await context.write(AnnouncementResult(generation=message.generation, unix_ms=42))

        async with hub([Stream(ANNOUNCE, serve)]) as running:
            latest = Latest(Announcement(posture="permissive"))
            times: list[int] = []
            announcer = Announcer(
                latest,
                Dialer(NAME).announce,
                running.front.addresses,
                Latest(fresh_identity(running.authority)),
                SystemClock(),
                heard_time=times.append,
            )
            task = asyncio.create_task(announcer.run())
            await eventually(lambda: announcer.state.value.connected)
            latest.set(Announcement(posture="strict"))
            await eventually(lambda: len(heard) == 2 and announcer.result.value is not None)
            assert await announcer.goodbye()
            await asyncio.wait_for(task, 30)
            assert [m.posture for m in heard] == ["permissive", "strict", "strict"]
            assert [m.goodbye for m in heard] == [False, False, True]
            assert sorted({m.generation for m in heard}) == [m.generation for m in heard]
            assert times == [42, 42, 42]

    asyncio.run(story())


def test_the_announcement_leaves_it_to_the_first_stream_to_find_the_hub_and_follows_it_at_once() -> None:
    async def story() -> None:
        tried: list[float] = []

        async def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            tried.append(asyncio.get_running_loop().time())
            writer.close()

        async with hub([]) as running:
            identity = Latest(fresh_identity(running.authority))
        server = await asyncio.start_server(refuse, "127.0.0.1", 0)
        where = [HostPort("127.0.0.1", server.sockets[0].getsockname()[1])]
        first: Latest[UpstreamState] = Latest(UpstreamState())
        dial = Dialer(NAME).announce
        announcer = Announcer(Latest(Announcement()), dial, where, identity, SystemClock(), first=first)
        task = asyncio.create_task(announcer.run())
        await eventually(lambda: announcer.state.value.last_error)
        many = len(tried)
        await asyncio.sleep(1.5)  # by itself it would have tried twice meanwhile
        assert len(tried) == many
        first.set(UpstreamState(connected=True))
        await eventually(lambda: len(tried) > many, 2)
        first.set(UpstreamState(connected=True, violation="now it is there and this one isn't: its own backoff"))
        many = len(tried)
        await eventually(lambda: len(tried) > many, 10)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        server.close()

    asyncio.run(story())


def test_goodbye_does_not_wait_for_a_hub_that_is_away() -> None:
    async def story() -> None:
        async with hub([]) as running:
            identity = Latest(fresh_identity(running.authority))
        announcer = Announcer(
            Latest(Announcement()), Dialer(NAME).announce, [HostPort("127.0.0.1", 1)], identity, SystemClock()
        )
        task = asyncio.create_task(announcer.run())
        await eventually(lambda: announcer.state.value.last_error)
        assert not await announcer.goodbye()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(story())
