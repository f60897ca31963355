"""Hot restart with real Envoys: two epochs, one listening socket, and nobody notices."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from meshagent.agent.envoy.launch import PARENT_SECONDS
from meshagent.agent.envoy.record import Records
from meshagent.agent.envoy.relief import LEAST_SECONDS
from meshagent.machine import process
from meshagent.machine.segments import segment
from meshagent.model.errors import MeshagentError
from meshagent.model.paths import Paths
from tests.agent.envoy.side import Side, own_root
from tests.agent.envoy.test_process import echo_config, echo_server, echoed
from tests.fakes.control_plane import FakeControlPlane
from tests.fakes.eventually import eventually

pytestmark = pytest.mark.root


class Load:
    """Connections one after the other, and one that stays; ``failed`` names what went wrong."""

    def __init__(self) -> None:
        self.exchanges, self.failed = 0, ""

    async def run(self) -> None:
        while True:
            if await echoed() != b"hello":
                self.failed = f"after {self.exchanges} exchanges"
                return
            self.exchanges += 1

    @asynccontextmanager
    async def going(self) -> AsyncIterator["Load"]:
        task = asyncio.create_task(self.run())
        try:
            await eventually(lambda: self.exchanges > 20)
            yield self
            reached = self.exchanges + 20
            await eventually(lambda: self.failed or self.exchanges > reached)
            assert not self.failed
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def exchange(streams: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> bytes:
    reader, writer = streams
    writer.write(b"still")
    return await asyncio.wait_for(reader.readexactly(5), 30)


@asynccontextmanager
async def planned() -> AsyncIterator[FakeControlPlane]:
    """A control plane that sends everybody to an echo server."""
    server = await echo_server()
    yield FakeControlPlane(echo_config(server.sockets[0].getsockname()[1]))
    server.close()


@asynccontextmanager
async def serving(paths: Paths) -> AsyncIterator[Side]:
    async with planned() as plane, Side(paths, plane).running() as side:
        await side.ready()
        yield side


async def echo_then_last_words(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Says back what comes; who has said all it had to say hears 25 words more, five a second."""
    while data := await reader.read(1000):
        writer.write(data)
    for number in range(25):
        writer.write(b"%02d" % number)
        await asyncio.sleep(0.2)
    writer.close()


def test_who_has_said_all_it_had_to_say_to_the_older_epoch_hears_the_whole_answer() -> None:
    """Both its connections are half-closed, not one is established any more; the older epoch is old enough to go."""

    async def story(paths: Paths) -> None:
        server = await asyncio.start_server(echo_then_last_words, "127.0.0.1", 0)
        side = Side(paths, FakeControlPlane(echo_config(server.sockets[0].getsockname()[1])))
        async with side.running():
            first = await side.ready()
            reader, writer = await asyncio.open_connection("127.0.0.1", 18080)
            assert await exchange((reader, writer)) == b"still"
            await side.proxy.restart()
            until = time.monotonic() + LEAST_SECONDS
            while time.monotonic() < until:
                assert await exchange((reader, writer)) == b"still"
                await asyncio.sleep(0.2)
            writer.write_eof()
            assert await asyncio.wait_for(reader.read(), 30) == b"".join(b"%02d" % number for number in range(25))
            writer.close()
            await eventually(lambda: side.proxy.state.value.parent is None, 30)
            assert process.start_time(first.pid) is None
        server.close()

    with own_root() as paths:
        asyncio.run(story(paths))


def test_a_hot_restart_fails_nothing_and_the_older_epoch_lives_for_its_connections_and_no_longer() -> None:
    async def story(paths: Paths) -> None:
        async with serving(paths) as side:
            first = side.proxy.state.value
            long = await asyncio.open_connection("127.0.0.1", 18080)
            async with Load().going():
                second = await side.proxy.restart()
                assert (second.ready, second.epoch, second.restarts) == (True, 1, 0)
                assert second.pid != first.pid and second.parent is not None
                assert second.parent.pid == first.pid
                assert await exchange(long) == b"still"
                with pytest.raises(MeshagentError) as caught:
                    await side.proxy.restart()
                assert (caught.value.code, bool(caught.value.hint)) == ("restart-too-early", True)
                await eventually(lambda: side.proxy.state.value.parent and side.proxy.state.value.parent.connections)
                assert await exchange(long) == b"still"
            until = time.monotonic() + PARENT_SECONDS + 3  # Envoy's own deadline for the older one
            while time.monotonic() < until:
                assert await exchange(long) == b"still"
                await asyncio.sleep(0.2)
            long[1].close()
            await eventually(lambda: side.proxy.state.value.parent is None, 30)
            assert process.start_time(first.pid) is None
            assert process.start_time(second.pid) == second.start_time
            assert sorted(p.name for p in paths.proxy_dir.glob("admin-*")) == ["admin-1.sock"]
            async with Load().going():
                third = await side.proxy.restart()
            assert (third.epoch, side.conditions.codes()) == (2, [])

    with own_root() as paths:
        asyncio.run(story(paths))


def test_a_next_epoch_that_never_serves_leaves_everything_as_it_was() -> None:
    async def story(paths: Paths) -> None:
        async with serving(paths) as side:
            before = side.proxy.state.value
            long = await asyncio.open_connection("127.0.0.1", 18080)
            side.launcher.options = ("--no-such-option",)
            async with Load().going():
                with pytest.raises(MeshagentError) as caught:
                    await side.proxy.restart()
            assert caught.value.code in ("restart-failed", "service-not-started")
            assert await exchange(long) == b"still"
            assert (side.proxy.state.value.pid, side.proxy.state.value.ready) == (before.pid, True)
            side.launcher.options = ()
            assert (await side.proxy.restart()).epoch == 1
            assert await exchange(long) == b"still"
            long[1].close()

    with own_root() as paths:
        asyncio.run(story(paths))


@pytest.mark.parametrize("moment", ["before it serves", "after it serves"])
def test_an_agent_that_is_killed_in_the_middle_is_followed_by_one_that_goes_on_from_there(moment: str) -> None:
    async def story(paths: Paths) -> None:
        async with planned() as plane:
            await go_on(paths, plane)

    async def go_on(paths: Paths, plane: FakeControlPlane) -> None:
        async with Side(paths, plane).running() as side:
            first = await side.ready()
            long = await asyncio.open_connection("127.0.0.1", 18080)
            restart = asyncio.create_task(side.proxy.restart())
            if moment == "after it serves":
                await restart
            else:
                await eventually((paths.run / "proxy-1.json").exists)
                await eventually(lambda: len(children(paths)) == 2)
                assert side.proxy._restarting is not None
                side.proxy._restarting.cancel()  # as if killed: nothing more is written down
            record = Records(paths).load()
            assert record is not None
            assert (record.parent is not None) == (moment == "after it serves")
        again = Side(paths, plane, side.authority)
        async with again.running():
            state = await again.ready()
            assert (state.epoch, state.adopted) == (1, True)
            assert state.pid != first.pid and state.parent is not None and state.parent.pid == first.pid
            assert await exchange(long) == b"still"
            assert await echoed() == b"hello"
            long[1].close()

    with own_root() as paths:
        asyncio.run(story(paths))


def children(paths: Paths) -> list[int]:
    from meshagent.agent.envoy import handover
    from tests.agent.envoy.side import USER

    return [handle.pid for _, handle in handover.running(paths, USER.uid)]


def test_when_the_newer_epoch_dies_the_older_ones_connections_live_on_and_a_fresh_one_takes_the_rest() -> None:
    async def story(paths: Paths) -> None:
        async with serving(paths) as side:
            long = await asyncio.open_connection("127.0.0.1", 18080)
            second = await side.proxy.restart()
            record = Records(paths).load()
            assert record is not None
            os.kill(second.pid, signal.SIGKILL)
            await eventually(lambda: side.proxy.state.value.ready and side.proxy.state.value.pid != second.pid, 20)
            assert await echoed() == b"hello"
            assert await exchange(long) == b"still"
            now = Records(paths).load()
            assert now is not None and now.base_id != record.base_id and now.parent is not None
            long[1].close()
            await eventually(lambda: side.proxy.state.value.parent is None, 30)
            assert not segment(record.base_id).exists()
            assert await echoed() == b"hello"

    with own_root() as paths:
        asyncio.run(story(paths))


@pytest.mark.long
@pytest.mark.timeout(180)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_older_epoch_outlives_envoys_own_deadline_and_its_end_does_not_touch_the_newer(number: int) -> None:
    async def story(paths: Paths) -> None:
        async with serving(paths) as side:
            long = await asyncio.open_connection("127.0.0.1", 18080)
            second = await side.proxy.restart()
            assert second.parent is not None
            until = time.monotonic() + 75  # past PARENT_SECONDS and one flush of statistics
            while time.monotonic() < until:
                assert await exchange(long) == b"still"
                assert await echoed() == b"hello"
                await asyncio.sleep(0.5)
            os.kill(second.parent.pid, number)
            until = time.monotonic() + 65
            while time.monotonic() < until:
                assert await echoed() == b"hello"
                await asyncio.sleep(0.5)
            assert side.proxy.state.value.pid == second.pid
            assert side.proxy.state.value.restarts == 0

    with own_root() as paths:
        asyncio.run(story(paths))
