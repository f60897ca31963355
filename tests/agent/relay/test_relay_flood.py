"""More configuration than Envoy can take just now, and more than fits into one window of answers."""

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import pytest
from envoy.config.cluster.v3.cluster_pb2 import Cluster

from meshagent.model.paths import Paths
from meshagent.protocol.entry import Entry, Snapshot
from meshagent.protocol.publisher import MAX_RESPONSE_BYTES, WINDOW
from meshagent.protocol.types import CDS, EDS, LDS
from tests.agent.envoy.side import Side, own_root
from tests.agent.envoy.test_process import echo_config, echo_server, echoed
from tests.fakes.control_plane import FakeControlPlane
from tests.fakes.envoy_resources import eds_cluster, endpoints, entry
from tests.fakes.eventually import eventually, eventually_async
from tests.ports import free_port

pytestmark = pytest.mark.root


def resident() -> int:
    """Bytes of this process, agent and control plane together."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def padded(cluster: Cluster, size: int) -> Cluster:
    """The same to a user, only bigger."""
    cluster.metadata.filter_metadata["test"]["padding"] = "x" * size
    return cluster


def in_use(side: Side) -> Snapshot:
    """What Envoy acknowledged."""
    return {type_url: side.subscriber.resources.get(type_url, {}) for type_url in side.plane.snapshot}


async def endpoints_of(side: Side, cluster: str) -> int:
    """How many endpoints Envoy itself says that it has."""
    found = (await side.proxy.admin.clusters())["cluster_statuses"]
    return next((len(each.get("host_statuses", [])) for each in found if each["name"] == cluster), 0)


def test_an_envoy_that_stands_still_under_changes_costs_no_memory_and_then_takes_the_newest() -> None:
    """200 versions of half a megabyte are 100 MB, if anybody queued them. All but the last lead to a closed port."""
    changes, size, closed = 200, 512 << 10, free_port()

    async def story(paths: Paths) -> None:
        server = await echo_server()
        port = server.sockets[0].getsockname()[1]
        plane = FakeControlPlane(echo_config(port))
        async with Side(paths, plane, patience=0.2).running() as side:
            pid = (await side.ready(60)).pid
            before = resident()
            os.kill(pid, signal.SIGSTOP)
            try:
                for number in range(changes):
                    plane.publish({**plane.snapshot, EDS: {"app": big_set(closed, size, number)}})
                    await asyncio.sleep(0.005)
                grown = resident() - before
            finally:
                with contextlib.suppress(ProcessLookupError):  # on a very busy machine it was replaced as hung
                    os.kill(pid, signal.SIGCONT)
            plane.publish({**plane.snapshot, EDS: {"app": entry(endpoints("app", port))}})
            await eventually(lambda: in_use(side) == plane.snapshot, 60)
            await eventually_async(_echoes, 60)
            assert grown < 48 << 20, f"{grown >> 20} MB"
            await eventually(lambda: not side.conditions.held, 60)
        server.close()

    with own_root() as paths:
        asyncio.run(story(paths))


def big_set(port: int, size: int, number: int) -> Entry:
    """One endpoint with so many bytes beside it."""
    assignment = endpoints("app", port)
    padding = assignment.endpoints[0].lb_endpoints[0].metadata.filter_metadata["test"]
    padding["padding"], padding["number"] = "x" * size, number
    return entry(assignment)


async def _echoes() -> bool:
    return await echoed() == b"hello"


async def _has(side: Side, cluster: str, count: int) -> bool:
    return await endpoints_of(side, cluster) == count


def test_twenty_megabytes_of_configuration_reach_envoy_and_the_disk_and_serve_without_a_control_plane() -> None:
    count, size = 400, 50 << 10
    assert count * size > WINDOW * MAX_RESPONSE_BYTES

    async def story(paths: Paths) -> None:
        server = await echo_server()
        port = server.sockets[0].getsockname()[1]
        config = echo_config(port)
        names = [f"c{number}" for number in range(count)]
        clusters = {name: entry(padded(eds_cluster(name), size)) for name in names}
        sets = {name: entry(endpoints(name, port)) for name in names}
        plane = FakeControlPlane({CDS: config[CDS] | clusters, EDS: config[EDS] | sets, LDS: config[LDS]})
        async with Side(paths, plane, patience=60.0).running() as side:
            await side.ready(60)
            await eventually(lambda: in_use(side) == plane.snapshot, 60)
            assert await echoed() == b"hello"
            assert await endpoints_of(side, names[-1]) == 1
        plane.down = {side.hub}
        pid = side.proxy.state.value.pid
        os.kill(pid, signal.SIGKILL)
        async with Side(paths, plane, patience=60.0).running() as side:
            assert (await side.ready(60)).pid != pid
            await eventually_async(lambda: _has(side, names[-1], 1), 60)
            assert await echoed() == b"hello"
            assert not {"cache-damaged", "config-rejected"} & set(side.conditions.codes())
        server.close()

    with own_root() as paths:
        asyncio.run(story(paths))
