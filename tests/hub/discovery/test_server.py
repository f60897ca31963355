"""Who gets whose configuration, and what happens to a stream of a host that is gone."""

import asyncio
import gc
import weakref
from dataclasses import replace

import grpc
import pytest
from envoy.config.core.v3.base_pb2 import Node

from meshagent.hub.discovery.fanout import Fanout
from meshagent.hub.discovery.rejections import Rejections
from meshagent.hub.discovery.server import Caller, Discovery, disagreement
from meshagent.hub.state import MeshState
from meshagent.model.address import IPAddress
from meshagent.model.errors import MeshagentError
from meshagent.model.posture import Posture
from meshagent.protocol.node import NodeId, Workload, build_node
from meshagent.protocol.publisher import Verdict
from meshagent.protocol.types import CDS, EDS
from meshagent.runtime.clock import SystemClock
from meshagent.runtime.latest import Latest
from meshagent.transport.grpc_server import Call, RefusedCallError
from meshagent.transport.peer import Peer
from tests.hub.snapshot.meshes import MESH, MYSQL, WEB

CALLER = Caller("web", "default", "web")


class KnownPeer(Peer):
    """A peer whose certificate has a known serial (the certificate itself is the front's business)."""

    @property
    def serial(self) -> str:
        return "ab12"


def node(name: str = "web", namespace: str = "default", account: str = "web") -> Node:
    address: IPAddress = WEB.addresses[0]
    return build_node(Workload(NodeId(address, name, namespace), account))


async def caller_of(serial: str) -> Caller:
    if serial != "ab12":
        raise MeshagentError("unknown-certificate", "no host has this certificate")
    return CALLER


def discovery(state: Latest[MeshState], rejections: Rejections | None = None) -> tuple[Discovery, Fanout]:
    fanout = Fanout(state)
    return Discovery(fanout, caller_of, rejections or Rejections(), SystemClock()), fanout


@pytest.mark.parametrize(
    ("said", "named"),
    [
        (node(name="db1"), "name"),
        (node(namespace="other"), "namespace"),
        (node(account="admin"), "SERVICE_ACCOUNT"),
        (Node(id="web"), "sidecar~"),
    ],
)
def test_a_node_that_claims_to_be_another_host_is_refused(said: Node, named: str) -> None:
    served, _ = discovery(Latest(MESH))
    with pytest.raises(RefusedCallError, match=named) as refused:
        asyncio.run(served.open(said, Call(KnownPeer("192.0.2.1"), {})))
    assert refused.value.status is grpc.StatusCode.PERMISSION_DENIED


def test_a_node_that_is_what_its_certificate_says_is_welcome() -> None:
    assert disagreement(node(), CALLER) == ""


def test_without_a_certificate_there_is_no_configuration() -> None:
    served, _ = discovery(Latest(MESH))
    with pytest.raises(RefusedCallError) as refused:
        asyncio.run(served.open(node(), Call(Peer("192.0.2.1"), {})))
    assert refused.value.status is grpc.StatusCode.UNAUTHENTICATED


def test_of_a_session_that_ended_nothing_stays_until_somebody_looks_for_garbage() -> None:
    async def story() -> None:
        served, _ = discovery(Latest(MESH))
        session = await served.open(node(), Call(KnownPeer("192.0.2.1"), {}))
        await asyncio.sleep(0)  # it follows now
        ended, told = weakref.ref(session), weakref.ref(session.snapshot)
        await session.close()
        del session
        for _ in range(3):
            await asyncio.sleep(0)
        assert (ended(), told()) == (None, None)

    gc.disable()
    try:
        asyncio.run(story())
    finally:
        gc.enable()


def test_a_host_hears_of_a_change_and_its_stream_ends_when_it_is_revoked() -> None:
    async def story() -> None:
        state: Latest[MeshState] = Latest(MESH)
        served, fanout = discovery(state)
        running = asyncio.ensure_future(fanout.run())
        session = await served.open(node(), Call(KnownPeer("192.0.2.1"), {}))
        before = session.snapshot.value
        assert "outbound|3306||db.default.mesh.internal" in before[EDS]
        worse = replace(MYSQL, endpoints=tuple(replace(e, healthy=False) for e in MYSQL.endpoints))
        version = session.snapshot.version
        state.set(replace(MESH, services=tuple(worse if s is MYSQL else s for s in MESH.services)))
        after = await asyncio.wait_for(session.snapshot.newer(version), 30)
        assert after[CDS] is before[CDS] and after[EDS] is not before[EDS]
        state.set(replace(MESH, hosts=tuple(h for h in MESH.hosts if h.name != "web")))
        ended = await asyncio.wait_for(session.ended.newer(0), 30)
        assert ended and ended[0] is grpc.StatusCode.PERMISSION_DENIED
        assert session.snapshot.value is after  # nothing was taken away from it
        await session.close()
        running.cancel()

    asyncio.run(story())


def test_hosts_for_which_nothing_changed_are_not_woken() -> None:
    async def story() -> None:
        state: Latest[MeshState] = Latest(MESH)
        fanout = Fanout(state)
        running = asyncio.ensure_future(fanout.run())
        feed = fanout.open("web")
        others = tuple(h if h.name == "web" else replace(h, posture=Posture.OBSERVE) for h in MESH.hosts)
        for told in (replace(MESH, root_namespace="elsewhere"), replace(MESH, hosts=others)):
            state.set(told)
            await asyncio.sleep(0.01)
            assert feed.snapshot.version == 0
        running.cancel()

    asyncio.run(story())


def test_a_state_that_cannot_be_built_leaves_everyone_with_what_they_have() -> None:
    async def story() -> None:
        state: Latest[MeshState] = Latest(MESH)
        fanout = Fanout(state)
        running = asyncio.ensure_future(fanout.run())
        feed = fanout.open("web")
        before = feed.snapshot.value
        state.set(replace(MESH, services=(replace(MYSQL, host="\ud800"),)))  # not encodable
        await asyncio.sleep(0.01)
        assert feed.snapshot.value is before
        version = feed.snapshot.version
        state.set(replace(MESH, services=(MYSQL,)))
        assert len((await asyncio.wait_for(feed.snapshot.newer(version), 30))[EDS]) == 1
        running.cancel()

    asyncio.run(story())


def test_a_refused_resource_is_remembered_until_a_newer_one_is_taken() -> None:
    async def story() -> None:
        rejections = Rejections()
        served, _ = discovery(Latest(MESH), rejections)
        session = await served.open(node(), Call(KnownPeer("192.0.2.1"), {}))
        session.on_verdict(Verdict(CDS, "1", {"good": "a", "bad": "b"}, (), error="bad: no such filter"))
        assert [(r.kind, r.resource, r.version) for r in rejections.of("web")] == [("Cluster", "bad", "b")]
        session.on_verdict(Verdict(CDS, "2", {"bad": "c"}, ()))
        assert rejections.of("web") == () and rejections.hosts() == ()
        await session.close()

    asyncio.run(story())
