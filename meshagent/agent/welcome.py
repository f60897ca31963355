"""After joining: start the agent where systemd runs this host, and tell in a few lines what holds from now on."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from meshagent.agent.plan import make_plan
from meshagent.machine import units
from meshagent.model.errors import MeshagentError
from meshagent.model.paths import Paths
from meshagent.transport.local import call

UNIT = "meshagent.service"

#: Envoy cold, certificate, first configuration: under 2 s on two cores; a busy old machine gets fifteen times that.
START_PATIENCE = 30.0


def welcome(
    paths: Paths, joined: dict[str, Any], *, start: bool, confirm: int, progress: Callable[[str], None]
) -> dict[str, Any]:
    """The contract's ``enroll`` shape (docs/cli.md). Raises ``MeshagentError`` when the unit doesn't start."""
    started = start and _start_unit(paths, progress)
    planned = make_plan(paths, None, {}).answer
    root = "" if str(paths.root) == "/" else f" --root {paths.root}"
    return {
        **joined,
        "posture": planned["posture"],
        "captured": [entry["port"] for entry in planned["captured"]],
        "spared": planned["spared"],
        "confirm_until": _until(paths, confirm, started),
        "undo": f"meshagent{root} leave",
        "emergency": _emergency(paths, started),
        "started": started,
    }


def _start_unit(paths: Paths, progress: Callable[[str], None]) -> bool:
    """False where no unit of ours is installed, or systemd doesn't run this host."""
    if not units.managed(UNIT, paths.root):
        return False
    progress("starting the agent")
    units.start(UNIT, enable=True)
    deadline = time.monotonic() + START_PATIENCE
    while time.monotonic() < deadline:
        if _ready(paths):
            return True
        time.sleep(0.1)
    raise MeshagentError(
        "not-ready", f"the agent did not get ready within {START_PATIENCE:g} s", hint="see: meshagent status"
    )


def _ready(paths: Paths) -> bool:
    try:
        status = call(paths.control_socket, "status", {}, timeout=2)
    except (OSError, MeshagentError):
        return False
    return bool(status["control_plane"]["connected"] and status["proxy"]["ready"])


def _until(paths: Paths, confirm: int, started: bool) -> str | None:
    """With the agent running the guard knows; else the time counts from the first capture on."""
    if started:
        answer = call(paths.control_socket, "posture.get", {}, timeout=5)
        return str(answer["confirm_until"]) if answer["confirm_until"] else None
    if not confirm:
        return None
    return (datetime.now(UTC) + timedelta(seconds=confirm)).isoformat(timespec="seconds").replace("+00:00", "Z")


def _emergency(paths: Paths, started: bool) -> str:
    """How to take capture off without us. The guard's pid is only known once it runs."""
    if started:
        return "systemctl stop meshagent-guard takes the rules off at once"
    return f"ending the guard (its pid: {paths.run}/guard.pid) takes the rules off at once"
