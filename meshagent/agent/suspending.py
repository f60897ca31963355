"""``capture off`` where no agent answers: the wish is written, and the guard (or a new one) is told directly.

An agent that hangs finds the wish when it wakes; one that is started later starts with it.
"""

from datetime import UTC, datetime
from typing import Any

from meshagent.agent import footprint as footprints
from meshagent.agent.capture.suspension import suspend, suspended_since
from meshagent.agent.guarding import ensure_guard
from meshagent.agent.stopping import stop_capturing
from meshagent.machine.users import require_root
from meshagent.model.paths import Paths


def suspend_without_agent(paths: Paths) -> dict[str, Any]:
    """Switch capture off; the answer has the contract's shape (docs/cli.md). Blocks. Raises ``MeshagentError``."""
    require_root("switching capture off")
    before = suspended_since(paths.suspended)
    since = suspend(paths.suspended, datetime.now(UTC))
    footprint = footprints.load(paths)
    if footprint is not None and footprint.uid > 0:
        guard = ensure_guard(paths)
        stop_capturing(guard, footprint.uid)
        guard.confirm()  # a change on trial isn't undone later: nothing is captured already
    return {
        "suspended": True,
        "since": since.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "changed": before is None,
        "confirm_until": None,
        "daemon": False,
    }
