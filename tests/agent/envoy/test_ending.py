"""The end of a real Envoy: who is connected may finish, who is idle hears so, one silent answer cuts nobody."""

import asyncio
import os
import signal
import struct
import subprocess
import sys
import time

import pytest

from meshagent.agent.envoy import farewell
from meshagent.agent.envoy.ending import end, in_use
from meshagent.agent.envoy.record import Records
from meshagent.machine import process
from meshagent.machine.sockets import Connection, Owner
from meshagent.model.paths import Paths
from tests.agent.envoy.side import Side, own_root
from tests.agent.envoy.test_looking import side_of
from tests.agent.envoy.test_process import echo_config
from tests.agent.test_drain import connection
from tests.fakes.control_plane import FakeControlPlane

pytestmark = pytest.mark.root


def test_a_connection_may_finish_also_when_the_admin_interface_is_silent_for_a_while() -> None:
    async def story(paths: Paths) -> None:
        side, server = await side_of(paths)
        async with side.running():
            pid = (await side.ready()).pid
        reader, writer = await asyncio.open_connection("127.0.0.1", 18080)
        os.kill(pid, signal.SIGSTOP)
        ending = asyncio.create_task(end(paths, grace=60))
        await asyncio.sleep(2.5)  # longer than one answer may take
        assert process.start_time(pid) is not None and not ending.done()
        os.kill(pid, signal.SIGCONT)
        for _ in range(5):
            writer.write(b"still")
            assert await asyncio.wait_for(reader.readexactly(5), 30) == b"still"
            await asyncio.sleep(0.2)
        writer.close()
        began = time.monotonic()
        assert await asyncio.wait_for(ending, 30)
        assert time.monotonic() - began < 20
        assert process.start_time(pid) is None
        assert not list(paths.run.glob("proxy*"))
        server.close()

    with own_root() as paths:
        asyncio.run(story(paths))


async def answer_slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Once the whole question is there."""
    await reader.read()
    for number in range(20):
        writer.write(b"%02d" % number)
        await asyncio.sleep(0.1)
    writer.close()


def test_a_client_that_has_said_all_it_had_to_say_still_gets_its_whole_answer() -> None:
    """Both connections are half-closed then; not one is established any more."""

    async def story(paths: Paths) -> None:
        server = await asyncio.start_server(answer_slowly, "127.0.0.1", 0)
        side = Side(paths, FakeControlPlane(echo_config(server.sockets[0].getsockname()[1])))
        async with side.running():
            await side.ready()
        reader, writer = await asyncio.open_connection("127.0.0.1", 18080)
        writer.write_eof()
        assert await reader.readexactly(2) == b"00"
        ending = asyncio.create_task(end(paths, grace=60))
        assert await asyncio.wait_for(reader.read(), 30) == b"".join(b"%02d" % number for number in range(1, 20))
        writer.close()
        assert await asyncio.wait_for(ending, 30)
        server.close()

    with own_root() as paths:
        asyncio.run(story(paths))


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
GOAWAY = 7


async def frames(reader: asyncio.StreamReader) -> list[int]:
    """Types of the HTTP/2 frames until the connection is closed (RFC 9113, 4.1)."""
    found: list[int] = []
    while head := await reader.read(9):
        size, kind = struct.unpack(">I", b"\0" + head[:3])[0], head[3]
        await reader.readexactly(size)
        found.append(kind)
    return found


def test_an_idle_http2_connection_is_told_to_go_before_it_is_closed() -> None:
    async def story(paths: Paths) -> None:
        side, server = await side_of(paths, http2=True)
        async with side.running():
            await side.ready()
            reader, writer = await asyncio.open_connection("127.0.0.1", 18080)
            writer.write(PREFACE)
            listening = asyncio.create_task(frames(reader))
            record = Records(paths).load()
            assert record is not None
            await asyncio.sleep(1.5)  # nothing to wait for: an idle connection hears nothing as long as nobody goes
            assert not listening.done()
            farewell.write(paths, record.base_id, record.epoch, go=True)
            assert GOAWAY in await asyncio.wait_for(listening, 30)
        writer.close()
        server.close()

    with own_root() as paths:
        asyncio.run(story(paths))


ENVOY = Owner(7, "envoy", "/envoy")


@pytest.mark.parametrize(
    ("found", "count"),
    [
        (connection("10.0.0.1", 15008, "10.0.0.2", 4000, ENVOY), 0),  # from a peer's proxy: maybe idle
        (connection("10.0.0.1", 4000, "10.0.0.2", 15008, ENVOY), 0),  # to a peer's proxy
        (connection("10.0.0.2", 5000, "10.0.0.1", 6379, ENVOY), 1),  # a peer's tunnel, on to the application
        (connection("127.0.0.1", 15001, "10.0.0.1", 5000, ENVOY), 1),  # an application here
        (connection("127.0.0.1", 15001, "10.0.0.1", 5000), 0),
    ],
)
def test_connections_between_proxies_alone_are_not_in_use(found: Connection, count: int) -> None:
    assert in_use([found], 7) == count


def test_where_the_kernel_does_not_tell_who_is_connected_that_is_not_known_rather_than_nobody() -> None:
    """Without a descriptor left; drain and relief then wait on."""
    code = (
        "import asyncio, resource, socket\n"
        "from meshagent.agent.envoy.ending import connected\n"
        "async def story():\n"
        "    before = await connected()\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (socket.socket().fileno(), 4096))\n"
        "    print(before is not None, await connected())\n"
        "asyncio.run(story())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "True None", done.stdout
    assert "connections are not known" in done.stdout
