"""Runs a command line and kills it (SIGKILL) right before its n-th change of the world; prints how many there were.

``python -m tests.agent.crashing N LOG ARGS…``: N = 0 never kills. LOG gets one line for each event: what would have
happened next. Events are Python's audit events (PEP 578) that write, remove, connect or start something; so the points
are those of the real run, and the program under test knows nothing of it.
"""

import importlib
import os
import signal
import sys
from typing import Any

_CHANGES = {
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.chown",
    "os.chmod",
    "os.truncate",
    "socket.connect",
    "subprocess.Popen",
    "shutil.rmtree",
}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def main(number: int, log: str, argv: list[str]) -> None:
    """Import first, so that only the command's own events count."""
    for module in ("agent.enroll", "agent.leave", "agent.welcome", "transport.channel", "cli.main"):
        importlib.import_module(f"meshagent.{module}")
    run = sys.modules["meshagent.cli.main"].run

    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    count = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in _CHANGES and not (event == "open" and isinstance(args[2], int) and args[2] & _WRITING):
            return
        count += 1
        os.write(descriptor, f"{count} {event} {str(args[0])[:80]}\n".encode())
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    status = run(argv)
    sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
