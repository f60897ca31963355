"""The supervisor with a real Envoy, in a network namespace of the test's own."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from meshagent.agent.envoy.complaints import NOT_RUNNING
from meshagent.agent.envoy.ending import end
from meshagent.agent.envoy.record import Records
from meshagent.lab.waiting import patience
from meshagent.machine import process, services
from meshagent.machine.segments import segment
from meshagent.model.paths import Paths
from meshagent.protocol.entry import Snapshot
from meshagent.protocol.types import CDS, EDS, LDS
from tests.agent.envoy.side import Side, own_root
from tests.fakes.control_plane import FakeControlPlane
from tests.fakes.envoy_resources import eds_cluster, endpoints, entry, tcp_listener
from tests.fakes.eventually import eventually

pytestmark = pytest.mark.root


def echo_config(port: int) -> Snapshot:
    return {
        CDS: {"app": entry(eds_cluster("app"))},
        EDS: {"app": entry(endpoints("app", port))},
        LDS: {"in": entry(tcp_listener("in", 18080, "app"))},
    }


async def echo_server() -> asyncio.Server:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1000):
            writer.write(data)
        writer.close()

    return await asyncio.start_server(echo, "127.0.0.1", 0)


async def echoed(port: int = 18080) -> bytes:
    """One exchange on a new connection; b'' when that fails."""
    try:
        async with asyncio.timeout(10):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"hello")
            answer = await reader.read(5)
            writer.close()
            return answer
    except (OSError, TimeoutError):
        return b""


def test_an_envoy_that_is_killed_is_back_and_serves_from_the_cache_while_the_hub_is_away() -> None:
    async def story(paths: Paths) -> None:
        server = await echo_server()
        plane = FakeControlPlane(echo_config(server.sockets[0].getsockname()[1]))
        async with Side(paths, plane).running() as side:
            first = await side.ready()
            assert await echoed() == b"hello"
            await eventually(lambda: side.cache.saved_at.value is not None)
            plane.down = {side.hub}
            plane.close_streams()
            await eventually(lambda: not side.session.state.value.connected)
            killed = time.monotonic()
            os.kill(first.pid, signal.SIGKILL)
            await eventually(lambda: not side.proxy.state.value.ready)
            second = await side.ready()
            assert await echoed() == b"hello"
            assert time.monotonic() - killed < 2 * patience()
            assert second.pid not in (0, first.pid)
            assert second.restarts == 1
            assert NOT_RUNNING not in side.conditions.codes()
        server.close()

    with own_root() as paths:
        asyncio.run(story(paths))


def test_an_agent_that_is_killed_leaves_envoy_running_and_the_next_one_adopts_the_same_process() -> None:
    async def prepare(paths: Paths) -> tuple[int, int, asyncio.Server]:
        server = await echo_server()
        plane = FakeControlPlane(echo_config(server.sockets[0].getsockname()[1]))
        async with Side(paths, plane).running() as side:
            state = await side.ready()
        return state.pid, state.start_time, server

    async def story(paths: Paths) -> None:
        pid, started, server = await prepare(paths)
        reader, writer = await asyncio.open_connection("127.0.0.1", 18080)
        for round_number in range(2):
            agent, found = await asyncio.to_thread(run_agent_until_ready, paths.root)
            assert (found["pid"], found["adopted"]) == (pid, True), round_number
            writer.write(b"still")
            assert await reader.readexactly(5) == b"still"
            agent.kill()
            agent.wait()
            assert process.start_time(pid) == started
        writer.write(b"alive")
        assert await reader.readexactly(5) == b"alive"
        assert await echoed() == b"hello"
        server.close()

    with own_root() as paths:
        asyncio.run(story(paths))


def run_agent_until_ready(root: Path) -> tuple[subprocess.Popen[str], dict[str, object]]:
    argv = [sys.executable, "-m", "tests.agent.envoy.side", str(root)]
    agent = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert agent.stdout is not None
    for line in agent.stdout:
        if line.startswith("{") and (found := json.loads(line)).get("ready"):
            return agent, found
    raise AssertionError("the agent ended")


def test_a_stranger_with_the_recorded_pid_is_neither_adopted_nor_ended() -> None:
    async def story(paths: Paths) -> None:
        server = await echo_server()
        plane = FakeControlPlane(echo_config(server.sockets[0].getsockname()[1]))
        stranger = subprocess.Popen(["sleep", "60"])  # noqa: ASYNC220 - only its pid is needed
        records = Records(paths)
        try:
            async with Side(paths, plane).running() as side:
                await side.ready()
            record = records.load()
            assert record is not None
            await services.stop_async(record.handle)
            began = process.start_time(stranger.pid)
            assert began is not None
            forged = services.Handle(stranger.pid, began, record.handle.exe_device, record.handle.exe_inode)
            records.save(type(record)(forged, record.version, 0, record.base_id))
            async with Side(paths, plane).running() as side:
                state = await side.ready()
            assert state.pid != stranger.pid
            assert not state.adopted
            assert stranger.poll() is None
        finally:
            stranger.kill()
            stranger.wait()
        server.close()

    with own_root() as paths:
        asyncio.run(story(paths))


def test_the_end_of_the_proxy_leaves_nothing_behind() -> None:
    async def story(paths: Paths) -> None:
        server = await echo_server()
        plane = FakeControlPlane(echo_config(server.sockets[0].getsockname()[1]))
        async with Side(paths, plane).running() as side:
            state = await side.ready()
            record = Records(paths).load()
            assert record is not None
            assert segment(record.base_id).exists()
            side.proxy.stand_down()
            assert await end(paths, grace=2)
        assert process.start_time(state.pid) is None
        assert not segment(record.base_id).exists()
        assert sorted(path.name for path in paths.run.iterdir()) == []
        assert sorted(path.name for path in paths.state.iterdir()) == ["cache"]
        assert not await end(paths)
        server.close()

    with own_root() as paths:
        asyncio.run(story(paths))
