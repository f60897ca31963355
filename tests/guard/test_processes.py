"""Watching processes that aren't our children."""

import os
import select
import subprocess

from meshagent.guard import processes


def test_a_living_process_is_watched_until_it_ends() -> None:
    child = subprocess.Popen(["sleep", "60"])
    started = processes.start_time(child.pid)
    assert started is not None
    pidfd = processes.open_pidfd(child.pid, started)
    assert pidfd is not None
    assert select.select([pidfd.descriptor], [], [], 0)[0] == []
    child.kill()
    assert select.select([pidfd.descriptor], [], [], 5)[0]
    pidfd.close()
    assert processes.start_time(child.pid) is None, "a zombie doesn't serve"
    child.wait()


def test_a_successor_with_the_same_pid_is_not_it() -> None:
    started = processes.start_time(os.getpid())
    assert started is not None
    assert processes.open_pidfd(os.getpid(), started + 1) is None
    assert processes.open_pidfd(2**22 - 1, 1) is None
