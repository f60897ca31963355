"""systemd hears of readiness when it asked, on a path or an abstract socket."""

import os
import socket
import time
from pathlib import Path

import pytest

from meshagent.machine import notify


@pytest.mark.parametrize("abstract", [False, True])
def test_states_arrive_as_one_datagram(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    name = f"\0meshagent-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(name)
        monkeypatch.setenv("NOTIFY_SOCKET", name.replace("\0", "@"))
        assert notify.notify("READY=1", "STATUS=serving")
        assert systemd.recv(100) == b"READY=1\nSTATUS=serving"


def test_nobody_listening_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify.notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    assert not notify.notify("READY=1")


@pytest.mark.parametrize(
    ("microseconds", "pid", "seconds"),
    [("10000000", "", 5.0), ("10000000", "1", None), ("", "", None), ("x", "", None), ("0", "", None)],
)
def test_the_watchdog_is_fed_twice_per_interval(
    monkeypatch: pytest.MonkeyPatch, microseconds: str, pid: str, seconds: float | None
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", microseconds)
    monkeypatch.setenv("WATCHDOG_PID", pid or str(os.getpid()))
    assert notify.watchdog_interval() == seconds


def test_a_socket_that_nobody_reads_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        began = time.monotonic()
        told = [notify.notify("WATCHDOG=1", "STATUS=x" * 100) for _ in range(2000)]
        assert told[0] and not told[-1] and time.monotonic() - began < 10
        assert not notify.notify("STOPPING=1")
