"""Long-lived processes outlive their starter, are proven when found again, and end when told to."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from meshagent.lab import wait_until
from meshagent.machine import process, services
from meshagent.machine.services import Handle
from meshagent.model.errors import MeshagentError


def sleeper(tmp_path: Path) -> Handle:
    return services.start_detached(["sleep", "1000"], log=tmp_path / "log")


def test_a_started_service_is_proven_and_stops_at_once(tmp_path: Path) -> None:
    handle = sleeper(tmp_path)
    assert services.alive(handle)
    assert os.getsid(handle.pid) == handle.pid
    assert Handle.from_dict(handle.as_dict()) == handle
    started = time.monotonic()
    assert services.stop(handle)
    assert time.monotonic() - started < 10
    assert not services.alive(handle)
    assert not services.stop(handle)


def test_it_outlives_the_process_that_started_it(tmp_path: Path) -> None:
    code = (
        "import sys, json, os, signal; from pathlib import Path; from meshagent.machine import services\n"
        "h = services.start_detached(['sleep', '1000'], log=Path(sys.argv[1]))\n"
        "print(json.dumps(h.as_dict()), flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "log")], stdout=subprocess.PIPE) as starter:
        assert starter.stdout is not None
        record = starter.stdout.read()
    handle = Handle.from_dict(json.loads(record))
    assert handle is not None
    descriptor = services.adopt(handle)
    assert descriptor is not None
    os.close(descriptor)
    assert services.stop(handle)


def test_one_that_wants_to_die_with_its_parent_outlives_its_starter_all_the_same(tmp_path: Path) -> None:
    """As Envoy does (hot restart): PR_SET_PDEATHSIG right after its start."""
    child = "import ctypes, time; ctypes.CDLL(None).prctl(1, 15); print('asked', flush=True); time.sleep(1000)"
    code = (
        "import sys, json, threading; from pathlib import Path; from meshagent.machine import services\n"
        "def start():\n"
        "    h = services.start_detached([sys.executable, '-c', sys.argv[2]], log=Path(sys.argv[1]))\n"
        "    print(json.dumps(h.as_dict()), flush=True)\n"
        "t = threading.Thread(target=start); t.start(); t.join()\n"  # the thread's end counts as the parent's
        "sys.stdin.read()\n"
    )
    log = tmp_path / "log"
    argv = [sys.executable, "-c", code, str(log), child]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as starter:
        assert starter.stdout is not None
        handle = Handle.from_dict(json.loads(starter.stdout.readline()))
        assert handle is not None
        wait_until(lambda: "asked" in log.read_text())
        starter.kill()
    assert services.alive(handle)
    assert services.stop(handle)


def test_a_stranger_with_the_same_pid_is_neither_adopted_nor_killed(tmp_path: Path) -> None:
    real = sleeper(tmp_path)
    try:
        other_start = Handle(real.pid, real.start + 1, real.exe_device, real.exe_inode)
        other_program = Handle(real.pid, real.start, real.exe_device, real.exe_inode + 1)
        for stranger in (other_start, other_program):
            assert services.adopt(stranger) is None
            assert not services.stop(stranger)
        assert services.alive(real)
    finally:
        services.stop(real)


@pytest.mark.parametrize("record", [{}, {"pid": "1"}, {"pid": True, "start": 1, "exe_device": 1, "exe_inode": 1}])
def test_a_record_that_is_not_whole_is_no_handle(record: dict[str, object]) -> None:
    assert Handle.from_dict(record) is None


def test_one_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(1000)"
    handle = services.start_detached([sys.executable, "-c", code], log=tmp_path / "log")
    wait_until(lambda: services.last_line(tmp_path / "log") == "deaf")
    assert asyncio.run(services.stop_async(handle, timeout=0.1))
    assert not services.alive(handle)


def test_its_end_is_noticed_on_the_event_loop(tmp_path: Path) -> None:
    handle = sleeper(tmp_path)

    async def notice() -> None:
        descriptor = services.adopt(handle)
        assert descriptor is not None
        waiting = asyncio.create_task(services.ended(descriptor))
        await asyncio.sleep(0)
        process.send_signal(handle.pid, handle.start, signal.SIGKILL)
        await asyncio.wait_for(waiting, 30)
        os.close(descriptor)

    asyncio.run(notice())


def test_one_that_was_killed_never_passes_for_alive(tmp_path: Path) -> None:
    handle = sleeper(tmp_path)
    process.send_signal(handle.pid, handle.start, signal.SIGKILL)
    wait_until(lambda: not services.alive(handle), timeout=5)  # who buries the zombie is its new parent's business
    assert services.adopt(handle) is None


@pytest.mark.parametrize(
    ("argv", "why"), [(["no-such-program"], "No such file"), (["/bin/sh-none"], "No such file"), (["/"], "start")]
)
def test_one_that_can_not_start_says_why(tmp_path: Path, argv: list[str], why: str) -> None:
    with pytest.raises(MeshagentError, match=why):
        services.start_detached(argv, log=tmp_path / "log")


@pytest.mark.parametrize("number", [3, 10, 200])
def test_whatever_number_the_open_binary_has_it_is_executed(tmp_path: Path, number: int) -> None:
    """The program that starts it uses descriptors of its own."""
    script = (
        "import os, sys; from pathlib import Path; from meshagent.machine import services\n"
        "os.closerange(3, 256); opened = os.open('/bin/sleep', os.O_RDONLY); os.dup2(opened, int(sys.argv[1]))\n"
        "handle = services.start_detached(['sleep', '1000'], log=Path(sys.argv[2]), executable_fd=int(sys.argv[1]))\n"
        "assert services.alive(handle) and services.stop(handle, timeout=5.0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(number), str(tmp_path / "log")], check=False)
    assert done.returncode == 0


@pytest.mark.root
def test_a_binary_in_a_closed_directory_runs_as_another_user_with_just_its_capabilities(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    shutil.copy("/bin/sleep", closed / "proxy")
    descriptor = os.open(closed / "proxy", os.O_RDONLY | os.O_CLOEXEC)
    handle = services.start_detached(
        ["proxy", "1000"],
        log=tmp_path / "log",
        executable_fd=descriptor,
        uid=65534,
        gid=65533,
        capabilities=["net_admin"],
    )
    os.close(descriptor)
    try:
        # execve shows the new program first, then its credentials, then its environment: here all of it is there.
        environ = Path(f"/proc/{handle.pid}/environ")
        environment = wait_until(environ.read_bytes)
        status = Path(f"/proc/{handle.pid}/status").read_text()
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert set(fields["Uid"].split()) == {"65534"}
        assert set(fields["Gid"].split()) == {"65533"}
        assert fields["Groups"].strip() == ""
        net_admin = 1 << 12
        assert {int(fields[name], 16) for name in ("CapEff", "CapAmb", "CapBnd", "CapPrm")} == {net_admin}
        assert fields["NoNewPrivs"] == "1"
        assert sorted(entry.partition(b"=")[0] for entry in environment.split(b"\0") if entry) == [b"LANG", b"PATH"]
    finally:
        services.stop(handle)
