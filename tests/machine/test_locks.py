"""Who holds a file is named."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

from meshagent.machine.locks import writers

HOLD = (
    "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print('held', flush=True); input()"
)


def test_another_process_that_holds_the_file_is_named_and_we_ourselves_are_not(tmp_path: Path) -> None:
    file = tmp_path / "locked"
    file.touch()
    assert writers([file, tmp_path / "absent"]) == ()
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", HOLD, str(file)], stdin=pipe, stdout=pipe, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        (found,) = writers([file])
        assert f"(pid {holder.pid})" in found
        holder.kill()
    assert writers([file]) == ()
    with file.open("w") as ours:
        fcntl.lockf(ours, fcntl.LOCK_EX)
        assert writers([file]) == (), os.getpid()
