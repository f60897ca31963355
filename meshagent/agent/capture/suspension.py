"""Capture switched off by a person: one small file says so, and as long as it is there nothing is captured.

The file is the wish itself, so it outlives agent and host, and whoever writes it (the agent, or the command line where
no agent answers) is heard: the agent looks at it once a second. A damaged file still means off, the side on which
nobody's traffic is touched.
"""

import asyncio
from datetime import UTC, datetime
from pathlib import Path

from meshagent.machine import files, state
from meshagent.model.condition import ConditionSink
from meshagent.runtime.latest import Latest

_FORMAT = 1
_LOOK_SECONDS = 1.0


def suspend(path: Path, now: datetime) -> datetime:
    """Write the wish, durably; one that is there stays as it is. Returns since when. Raises ``MeshagentError``."""
    earlier = suspended_since(path)
    if earlier is None:
        state.write_state(path, {"since": now.astimezone(UTC).isoformat(timespec="seconds")}, format=_FORMAT)
    return earlier or now


def resume(path: Path) -> bool:
    """Take the wish back; False when there was none. Raises ``MeshagentError``."""
    there = path.exists()
    files.remove_file(path)
    return there


def suspended_since(path: Path) -> datetime | None:
    """When capture was switched off (aware UTC), None when it isn't; of a damaged file, when it was written."""
    found = state.read_state(path, format=_FORMAT, precious=True)  # precious: set aside, it would mean "on"
    if found.data is None and not found.problem:
        return None
    try:
        since = datetime.fromisoformat(str((found.data or {})["since"]))
    except (KeyError, ValueError):
        since = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    return since if since.tzinfo else since.replace(tzinfo=UTC)


class Suspension:
    """The wish as a value to watch; ``since`` is when it was said, aware UTC."""

    def __init__(self, path: Path, conditions: ConditionSink) -> None:
        self._path, self._conditions = path, conditions
        self.suspended: Latest[bool] = Latest(False)
        self.since: datetime | None = None

    async def run(self, interval: float = _LOOK_SECONDS) -> None:
        """Follow the file until cancelled."""
        while True:
            await asyncio.sleep(interval)
            self.refresh()

    async def suspend(self, now: datetime) -> bool:
        """Switch off; False when it was off already. Raises ``MeshagentError``, then nothing has changed."""
        before = self.refresh()
        await asyncio.to_thread(suspend, self._path, now)
        self.refresh()
        return not before

    async def resume(self) -> bool:
        """Switch on again; False when it was on. Raises ``MeshagentError``, then nothing has changed."""
        there = await asyncio.to_thread(resume, self._path)
        self.refresh()
        return there

    def refresh(self) -> bool:
        """Look at the file now; True while capture is switched off."""
        self.since = suspended_since(self._path)
        if self.since is None:
            self._conditions.clear("capture-suspended")
        else:
            self._conditions.set("capture-suspended", f"since {self.since.strftime('%Y-%m-%d %H:%M')} UTC")
        self.suspended.set(self.since is not None)
        return self.suspended.value
