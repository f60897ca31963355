"""The guard of this root: talk to it, start one where none answers, bring it to this version without a gap."""

import os
import time
from collections.abc import Mapping
from pathlib import Path

import structlog

from meshagent import __version__
from meshagent.guard.client import GuardClient, GuardRefusedError, GuardUnreachableError, command
from meshagent.machine import files, process, services, units
from meshagent.model.errors import MeshagentError
from meshagent.model.paths import Paths

log = structlog.get_logger(__name__)

UNIT = "meshagent-guard.service"
#: A guard answers within 60 ms of its start; a machine with 27 programs waiting for 2 cores took more than 6 s.
START_PATIENCE = 20.0
#: For a host without libnftables.
INSTALL_NFT = "install it: apt-get install libnftables1 (Debian, Ubuntu) or dnf install nftables (RHEL, Fedora)"


def ensure_guard(paths: Paths) -> GuardClient:
    """A client of this root's guard, of this version. Blocks.

    Where none answers one is started: its unit where a package installed it, so that systemd keeps it and
    ``systemctl stop`` ends it; else detached (it must outlive whoever asks). One of another version is upgraded.
    Raises ``MeshagentError`` when none can be started.
    """
    client = GuardClient(paths.guard_socket)
    if _answers(client):
        upgrade_guard(paths, client)
        return client
    files.make_dir(paths.run, mode=0o755)  # an agent that never ran on this host has not made it
    if units.managed(UNIT, paths.root):
        units.start(UNIT)
    else:
        services.start_detached(command(paths.root), log=paths.guard_log, env=_environment())
    deadline = time.monotonic() + START_PATIENCE
    while not _answers(client):
        if time.monotonic() > deadline:
            client.state()  # raises what is wrong
        time.sleep(0.01)  # nothing tells when a socket of another process begins to listen
    return client


def replace_guard(paths: Paths) -> GuardClient:
    """``ensure_guard`` for the agent whose guard ended while it ran.

    A guard that a person ended stays ended, or the emergency switch would switch nothing: it is back with the next
    start of guard or agent. Raises ``MeshagentError``, then too.
    """
    if paths.guard_stopped.exists():
        raise MeshagentError("guard-stopped", "the guard was stopped on this host; nothing is captured")
    return ensure_guard(paths)


def upgrade_guard(paths: Paths, client: GuardClient) -> bool:
    """Let a running guard of another version become this one: rules, their owner and its process stay. Blocks.

    For the package's upgrade, and for an agent that finds an older guard. False when it is this version already, or
    when it can't follow: then the older one goes on, and nothing has changed.
    """
    before = _version(client)
    if before in (None, __version__):
        return False
    argv = command(paths.root)
    try:
        process.run([*argv, "--preflight"], timeout=START_PATIENCE, env=os.environ | _environment())
        client.succeed(argv, _environment())
    except (process.ProgramError, GuardRefusedError) as error:
        log.warning(
            "the guard could not be brought to this version", running=before, code=error.code, error=error.message
        )
        return False
    return _became(client)


def _became(client: GuardClient) -> bool:
    deadline = time.monotonic() + START_PATIENCE
    while time.monotonic() < deadline:
        try:
            if client.state().get("version") == __version__:
                return True
        except MeshagentError:
            pass
        time.sleep(0.01)  # nothing tells when another program has taken its place
    return False


def find_guard(paths: Paths) -> GuardClient | None:
    """A client of a guard that answers, or None."""
    client = GuardClient(paths.guard_socket)
    return client if _answers(client) else None


def _answers(client: GuardClient) -> bool:
    return _version(client) is not None


def _version(client: GuardClient) -> str | None:
    """Of the guard that answers: empty where it is too old, or too new, to say. None where none answers."""
    try:
        return str(client.state().get("version", ""))
    except GuardUnreachableError:
        return None
    except GuardRefusedError:
        return ""


def _environment() -> Mapping[str, str]:
    """A guard of a source tree has to find the package; an installed one needs nothing."""
    package_parent = Path(__file__).resolve().parents[2]
    kept = {name: os.environ[name] for name in ("PYTHONPATH", "PYTHONHOME") if name in os.environ}
    return kept or {"PYTHONPATH": str(package_parent)}
