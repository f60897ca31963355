"""Who uses iptables, seen from its lock: real files, real locks."""

import fcntl
import os
import select
import subprocess
import sys
from pathlib import Path

from meshagent.guard.legacy_lock import LockWatch, User, holders


def test_the_process_that_holds_the_lock_is_named_with_who_started_it(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.touch()
    watch = LockWatch(lock)
    watch.follow()
    held = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", held, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout
        other.stdout.readline()
        assert select.select([watch], [], [], 20)[0]
        opened, user = watch.read()
        own = Path("/proc/self/comm").read_text().strip()
        assert opened and user == User(other.pid, f"{Path(f'/proc/{other.pid}/comm').read_text().strip()} by {own}")
        other.communicate("\n")
    assert watch.read() == (False, None), "the end is no use of it"
    watch.close()


def test_what_we_did_ourselves_is_forgotten_and_a_lock_made_anew_is_followed(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    watch = LockWatch(lock)
    watch.follow()  # not there yet
    for _ in range(2):
        lock.write_text("")
        watch.follow()
        lock.read_text()
        watch.follow()
        assert watch.read() == (False, None)
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            opened, user = watch.read()
            assert opened and user and user.pid == os.getpid()
            assert watch.follow() == user
        lock.unlink()
        watch.read()
    watch.close()


def test_only_locks_on_that_very_file_count_also_of_those_who_wait() -> None:
    lines = [
        "1: FLOCK  ADVISORY  WRITE 321 00:1a:77 0 EOF",
        "1: -> FLOCK  ADVISORY  WRITE 322 00:1a:77 0 EOF",
        "2: POSIX  ADVISORY  WRITE 323 00:1a:77 0 EOF",
        "3: FLOCK  ADVISORY  WRITE 324 00:1a:78 0 EOF",
        "4: FLOCK  ADVISORY  WRITE 0 00:1a:77 0 EOF",
        "5: nonsense",
    ]
    assert holders(lines, "00:1a:77") == [321, 322]
