"""A program the lab started on a host: its output, its end."""

import signal
import subprocess
from pathlib import Path

from meshagent.lab.waiting import patience
from meshagent.machine import process
from meshagent.model.errors import MeshagentError


class Program:
    """A program the lab started on a host; its output goes to the file ``log``, from the byte ``begins_at`` on.

    Programs of one name share a file, one after the other: what an earlier one said stays for people to read.
    """

    def __init__(self, argv: list[str], popen: subprocess.Popen[bytes], log: Path, begins_at: int = 0) -> None:
        self.argv = argv
        self.popen = popen
        self.log = log
        self.begins_at = begins_at
        self.started = process.start_time(popen.pid)

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def alive(self) -> bool:
        return self.popen.poll() is None

    def text(self) -> str:
        """Everything it printed so far, stdout and stderr together."""
        return self.log.read_bytes()[self.begins_at :].decode(errors="replace")

    def send_signal(self, number: int) -> None:
        """Send a signal; nothing happens when it has ended."""
        self.popen.send_signal(number)

    def wait(self, timeout: float = 10.0) -> int:
        """Wait for its end and return the exit status (negative: a signal)."""
        timeout *= patience()
        try:
            return self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise MeshagentError(
                "program-timeout", f"`{process.show(self.argv)}` did not end within {timeout:g} s: {self.tail()}"
            ) from None

    def stop(self, timeout: float = 10.0, number: int = signal.SIGTERM) -> int:
        """Ask it to end, kill it after ``timeout`` seconds; the exit status."""
        self.send_signal(number)
        try:
            return self.popen.wait(timeout * patience())
        except subprocess.TimeoutExpired:
            self.popen.kill()
            return self.popen.wait(timeout)

    def kill(self) -> int:
        """End it the hard way; the exit status."""
        self.popen.kill()
        return self.popen.wait(10)

    def tail(self, lines: int = 15) -> str:
        """The last lines of its output."""
        return "\n".join(self.text().splitlines()[-lines:])
