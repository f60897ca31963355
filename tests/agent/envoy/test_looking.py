"""Looks at a real Envoy that hangs, is short of memory, or can't be asked."""

import asyncio
import os
import signal
from dataclasses import replace

import pytest

from meshagent.agent.envoy.admin import Admin
from meshagent.agent.envoy.epochs import Listening
from meshagent.agent.envoy.listening import probe
from meshagent.agent.envoy.looking import Looker
from meshagent.machine import process
from meshagent.model.paths import Paths
from meshagent.protocol.types import LDS
from meshagent.runtime.clock import SystemClock
from tests.agent.envoy.side import Side, own_root
from tests.agent.envoy.test_process import echo_config, echo_server, echoed
from tests.fakes.control_plane import FakeControlPlane
from tests.fakes.envoy_resources import entry, http2_listener
from tests.fakes.eventually import eventually

pytestmark = pytest.mark.root


async def side_of(paths: Paths, *, http2: bool = False) -> tuple[Side, asyncio.Server]:
    """With an echo server behind port 18080, which speaks HTTP/2 and answers by itself if ``http2``."""
    server = await echo_server()
    config = dict(echo_config(server.sockets[0].getsockname()[1]))
    if http2:
        config[LDS] = {"in": entry(http2_listener("in", 18080))}
    return Side(paths, FakeControlPlane(config)), server


def test_a_proxy_that_hangs_is_told_about_soon_and_replaced_after_a_while() -> None:
    async def story(paths: Paths) -> None:
        side, server = await side_of(paths)
        async with side.running():
            first = await side.ready()
            os.kill(first.pid, signal.SIGSTOP)
            text = await asyncio.wait_for(side.conditions.holding("proxy-hung"), 20)
            assert str(first.pid) in text
            assert not side.proxy.state.value.ready
            assert process.start_time(first.pid) == first.start_time  # a debugger may be at work: not at once
            await eventually(lambda: process.start_time(first.pid) is None, 40)
            second = await side.ready()
            assert second.pid != first.pid and second.restarts == 1
            assert await echoed() == b"hello"
            assert side.conditions.codes() == []
        server.close()

    with own_root() as paths:
        asyncio.run(story(paths))


def test_a_proxy_that_goes_on_in_time_is_left_alone() -> None:
    async def story(paths: Paths) -> None:
        side, server = await side_of(paths)
        async with side.running():
            first = await side.ready()
            os.kill(first.pid, signal.SIGSTOP)
            await asyncio.wait_for(side.conditions.holding("proxy-hung"), 20)
            os.kill(first.pid, signal.SIGCONT)
            await eventually(lambda: side.conditions.codes() == [] and side.proxy.state.value.ready, 10)
            assert side.proxy.state.value.pid == first.pid
        server.close()

    with own_root() as paths:
        asyncio.run(story(paths))


def test_a_ready_proxy_is_not_asked_for_its_numbers_at_every_look() -> None:
    """It looks through all of them, in the thread that takes configuration."""

    async def story(paths: Paths) -> None:
        side, server = await side_of(paths)
        asked: list[bytes] = []
        async with side.running():
            await side.ready()

            async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                question = await reader.readuntil(b"\r\n\r\n")
                asked.append(question.split()[1].partition(b"?")[0])
                answers, questions = await asyncio.open_unix_connection(side.proxy.admin.path)
                questions.write(question)
                writer.write(await answers.read())
                questions.close()
                writer.close()

            between = paths.run / "between.sock"
            passing = await asyncio.start_unix_server(pass_on, between)
            looker = Looker(Admin(between), SystemClock())
            assert all([(await looker.look()).ready for _ in range(20)])
            assert asked == [b"/ready", b"/stats", *[b"/ready"] * 19]
            passing.close()
        server.close()

    with own_root() as paths:
        asyncio.run(story(paths))


def test_a_proxy_without_memory_takes_nothing_new_says_so_and_is_not_taken_for_hung() -> None:
    async def story(paths: Paths) -> None:
        side, server = await side_of(paths)
        side.settings = replace(side.settings, memory=1 << 20)
        async with side.running():
            state = await side.ready()
            await asyncio.wait_for(side.conditions.holding("proxy-memory"), 20)
            assert await echoed() == b""
            side.settings = replace(side.settings, memory=0)
            os.kill(state.pid, signal.SIGKILL)
            await eventually(lambda: side.proxy.state.value.pid not in (0, state.pid))
            await side.ready()
            await eventually(lambda: side.conditions.codes() == [])
            assert await echoed() == b"hello"
        server.close()

    with own_root() as paths:
        asyncio.run(story(paths))


def test_what_listens_is_told_from_what_hangs_and_from_what_is_not_there() -> None:
    async def story() -> None:
        async def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        async def hang(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
            await reader.read()

        found = []
        for behaviour in (close, hang):
            async with await asyncio.start_server(behaviour, "127.0.0.1", 0) as server:
                port = server.sockets[0].getsockname()[1]
                found.append(await probe(port, 0.3))
        assert [*found, await probe(port, 0.3)] == [Listening.ANSWERS, Listening.SILENT, Listening.NONE]

    asyncio.run(story())
