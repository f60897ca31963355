"""The guard of this root: talk to it, and start one where none answers."""

import os
import time
from pathlib import Path

from meshagent.guard.client import GuardClient, GuardUnreachableError, command
from meshagent.machine import files, services
from meshagent.model.paths import Paths

#: A guard answers within 60 ms of its start; a loaded machine gets a hundred times that.
START_PATIENCE = 6.0
#: For a host without libnftables.
INSTALL_NFT = "install it: apt-get install libnftables1 (Debian, Ubuntu) or dnf install nftables (RHEL, Fedora)"


def ensure_guard(paths: Paths) -> GuardClient:
    """A client of this root's guard, started detached (it must outlive whoever asks) when none answers. Blocks.

    Raises ``MeshagentError`` when it can't be started.
    """
    client = GuardClient(paths.guard_socket)
    if _answers(client):
        return client
    argv = command(paths.root)
    files.make_dir(paths.run, mode=0o755)  # an agent that never ran on this host has not made it
    services.start_detached(argv, log=paths.guard_log, env=_environment())
    deadline = time.monotonic() + START_PATIENCE
    while not _answers(client):
        if time.monotonic() > deadline:
            client.state()  # raises what is wrong
        time.sleep(0.01)  # nothing tells when a socket of another process begins to listen
    return client


def find_guard(paths: Paths) -> GuardClient | None:
    """A client of a guard that answers, or None."""
    client = GuardClient(paths.guard_socket)
    return client if _answers(client) else None


def _answers(client: GuardClient) -> bool:
    try:
        client.state()
    except GuardUnreachableError:
        return False
    return True


def _environment() -> dict[str, str]:
    """A guard of a source tree has to find the package; an installed one needs nothing."""
    package_parent = Path(__file__).resolve().parents[2]
    kept = {name: os.environ[name] for name in ("PYTHONPATH", "PYTHONHOME") if name in os.environ}
    return kept or {"PYTHONPATH": str(package_parent)}
