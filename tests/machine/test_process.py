"""Running programs and naming processes."""

import asyncio
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meshagent.lab import wait_until
from meshagent.machine import process


def both(argv: list[str], **options: Any) -> list[object]:
    """The result, or the error, of the plain and of the async call."""
    results: list[object] = []
    plain: Callable[[], object] = functools.partial(process.run, argv, **options)
    for call in (plain, lambda: asyncio.run(process.run_async(argv, **options))):
        try:
            results.append(call())
        except process.ProgramError as error:
            results.append(error)
    return results


def test_input_and_output_larger_than_a_pipe_pass_at_once() -> None:
    text = "line\n" * 100_000
    for done in both(["cat"], input=text):
        assert isinstance(done, subprocess.CompletedProcess)
        assert done.stdout == text


def test_a_program_that_reads_nothing_is_no_error() -> None:
    for done in both(["true"], input="x" * 1_000_000):
        assert isinstance(done, subprocess.CompletedProcess)


@pytest.mark.parametrize(
    ("argv", "options", "code", "text"),
    [
        (["sh", "-c", "echo why >&2; exit 3"], {}, "program-failed", "failed with exit status 3: why"),
        (["sh", "-c", "kill -9 $$"], {}, "program-failed", "was ended by SIGKILL"),
        (["no-such-program", "a b"], {}, "program-missing", "`no-such-program 'a b'` could not run"),
        (["/etc/passwd"], {}, "program-not-started", "Permission denied"),
        (["sleep", "10"], {"timeout": 0.1}, "program-timeout", "did not end within 0.1 s"),
        (["sh", "-c", "exec >&- 2>&-; sleep 10"], {"timeout": 0.1}, "program-timeout", "did not end within 0.1 s"),
        (["yes"], {"limit": 10_000}, "program-output", "printed more than 10000 bytes"),
    ],
)
def test_an_error_shows_the_command_and_why(argv: list[str], options: dict[str, float], code: str, text: str) -> None:
    started = time.monotonic()
    for error in both(argv, **options):
        assert isinstance(error, process.ProgramError)
        assert error.code == code
        assert text in error.message
        assert process.show(argv) in error.message
    assert time.monotonic() - started < 5


def test_a_failure_that_is_expected_comes_back_as_a_result() -> None:
    for done in both(["false"], check=False):
        assert isinstance(done, subprocess.CompletedProcess)
        assert done.returncode == 1


def test_a_cancelled_call_ends_its_program(tmp_path: Path) -> None:
    async def cancel() -> int:
        task = asyncio.create_task(process.run_async(["sh", "-c", f"echo $$ >{tmp_path}/pid; exec sleep 100"]))
        await asyncio.to_thread(wait_until, lambda: (tmp_path / "pid").read_text().strip())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return int((tmp_path / "pid").read_text())

    pid = asyncio.run(cancel())
    wait_until(lambda: process.start_time(pid) is None, timeout=5)


def test_a_process_is_named_by_its_start_time_whatever_it_is_called(tmp_path: Path) -> None:
    odd = tmp_path / "a) Z 1 (b"
    odd.symlink_to("/bin/sleep")
    with subprocess.Popen([odd, "100"]) as sleeper:
        started = process.start_time(sleeper.pid)
        assert started is not None
        assert process.parent(sleeper.pid) == os.getpid()
        assert process.exe_identity(sleeper.pid) == identity("/bin/sleep")
        assert not process.send_signal(sleeper.pid, started + 1, signal.SIGKILL)
        assert process.start_time(sleeper.pid) == started
        with process.pidfd(sleeper.pid, started) as descriptor:
            assert descriptor is not None
            assert not process.wait_ended(descriptor, 0)
            assert process.send_signal(sleeper.pid, started, signal.SIGKILL)
            assert process.wait_ended(descriptor, 5)
        assert process.start_time(sleeper.pid) is None, "a zombie is not alive"
        assert process.exe_identity(sleeper.pid) is None
    assert not process.send_signal(sleeper.pid, started, signal.SIGKILL)


def identity(path: str) -> tuple[int, int]:
    found = Path(path).stat()
    return found.st_dev, found.st_ino


def test_this_process_is_found_among_all() -> None:
    assert os.getpid() in set(process.pids())
    assert process.exe_identity(os.getpid()) == identity(sys.executable)
    assert process.namespace() == process.namespace(os.getpid())
    assert process.comm(2**22 + 1) == ""
    assert process.namespace(2**22 + 1) is None
