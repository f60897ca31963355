"""Units of systemd that run parts of this product, where a package installed them."""

import os
from pathlib import Path

from meshagent.machine import facts, process

_FOLDERS = (Path("/etc/systemd/system"), Path("/usr/lib/systemd/system"), Path("/lib/systemd/system"))
#: A unit that says READY=1 does so within two seconds; a busy old machine gets thirty times that.
_START_SECONDS = 60.0


def managed(unit: str, root: Path) -> bool:
    """Whether systemd runs this host and has the unit; other roots than ``/`` are not what its unit is for."""
    return str(root) == "/" and facts.init_system() == "systemd" and any((f / unit).exists() for f in _FOLDERS)


def start(unit: str, *, enable: bool = False) -> None:
    """Returns when it is ready. Blocks. Raises ``ProgramError`` with systemd's words when it doesn't start."""
    verbs = ["enable", "--now"] if enable else ["start"]
    # Our own supervisor's socket is not for this child: its messages would only be refused and logged.
    environment = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
    process.run(["systemctl", *verbs, unit], timeout=_START_SECONDS, env=environment)
