"""An event loop that turns feeds the watchdog and tells its state; one that hangs doesn't."""

import asyncio
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshagent.machine.notifying import keep_notified
from tests.fakes.eventually import eventually
from tests.hub.hosts import on_loop


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.delenv("WATCHDOG_USEC", raising=False)
        yield listening


def heard(systemd: socket.socket) -> list[str]:
    found: list[str] = []
    try:
        while True:
            found += systemd.recv(1000).decode().splitlines()
    except BlockingIOError:
        return found


@on_loop
async def test_without_systemd_nothing_runs() -> None:
    os.environ.pop("NOTIFY_SOCKET", None)
    await asyncio.wait_for(keep_notified(lambda: "x"), 30)


def test_the_status_is_told_when_it_changes_and_only_then(systemd: socket.socket) -> None:
    async def story() -> None:
        line, said = "one", []
        task = asyncio.create_task(keep_notified(lambda: line, look=0.01))
        await eventually(lambda: said.extend(heard(systemd)) or said)
        line = "two"
        await eventually(lambda: said.extend(heard(systemd)) or len(said) > 1)
        await asyncio.sleep(0.1)
        assert said + heard(systemd) == ["STATUS=one", "STATUS=two"]
        task.cancel()

    asyncio.run(story())


def test_the_watchdog_is_fed_until_the_loop_hangs(systemd: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        monkeypatch.setenv("WATCHDOG_USEC", "40000")
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
        task = asyncio.create_task(keep_notified(lambda: "x"))
        said: list[str] = []
        await eventually(lambda: said.extend(heard(systemd)) or said.count("WATCHDOG=1") > 3)
        heard(systemd)
        time.sleep(0.2)  # noqa: ASYNC251 - a loop that hangs
        assert heard(systemd) == []
        task.cancel()

    asyncio.run(story())
