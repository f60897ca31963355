"""How old is what this host serves from: when the control plane was last heard, and the limit that agent.yaml sets.

Ages go by the clock that nobody sets and that runs on in suspend (CLOCK_BOOTTIME), also over a restart of the agent:
the moment is on disk. Over a reboot only the wall clock is left; a clock that went back makes an age 0, never less.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from meshagent.agent.identity.schedule import time_left_text
from meshagent.agent.upstream.state import UpstreamState
from meshagent.config.settings import AgentConfig
from meshagent.machine import state
from meshagent.model.condition import ConditionSink
from meshagent.model.errors import MeshagentError
from meshagent.runtime.clock import boot_seconds
from meshagent.runtime.latest import Latest, any_newer

CONDITION = "config-too-old"
_FORMAT = 1
_LOOK_SECONDS = 2.0
#: A host that loses power is wrong by this much at most, and writes one small file in this time.
_WRITE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Moment:
    """``wall`` aware UTC; ``boot_seconds`` since the boot named ``boot_id``."""

    wall: datetime
    boot_id: str
    boot_seconds: float


def seconds_between(earlier: Moment, later: Moment) -> float:
    """Seconds, never negative."""
    if earlier.boot_id and earlier.boot_id == later.boot_id:
        return max(0.0, later.boot_seconds - earlier.boot_seconds)
    return max(0.0, (later.wall - earlier.wall).total_seconds())


class Heard:
    """``too_old`` follows the limit; ``age`` is in seconds, 0 while connected. ``run`` keeps both, until cancelled."""

    def __init__(
        self,
        path: Path,
        boot_id: str,
        upstream: Latest[UpstreamState],
        config: Latest[AgentConfig],
        conditions: ConditionSink,
        now: Callable[[str], Moment] | None = None,
    ) -> None:
        self.too_old: Latest[bool] = Latest(False)
        self._path, self._boot_id = path, boot_id
        self._upstream, self._config, self._conditions = upstream, config, conditions
        self._now = now or _here
        self._last = self._now(boot_id)
        self._written: Moment | None = None

    def start(self, saved_at: datetime | None) -> None:
        """``saved_at``: when the configuration was saved, for a host that never wrote down when it heard last."""
        found = state.read_state(self._path, format=_FORMAT).data or {}
        with contextlib.suppress(KeyError, ValueError, TypeError):
            wall = datetime.fromisoformat(str(found["wall"])).astimezone(UTC)
            self._last = Moment(wall, str(found["boot_id"]), float(found["boot_seconds"]))
            self.look()
            return
        if saved_at is not None:
            self._last = Moment(saved_at, "", 0.0)
        self.look()

    @property
    def age(self) -> float:
        """Seconds since the control plane was heard; 0 while it is connected."""
        return 0.0 if self._upstream.value.connected else seconds_between(self._last, self._now(self._boot_id))

    async def run(self) -> None:
        """Look whenever something changes, and every two seconds."""
        try:
            while True:
                values = (self._upstream, self._config)
                versions = [value.version for value in values]
                self.look()
                if self._is_due():
                    await asyncio.to_thread(self._write)
                await any_newer(values, versions, _LOOK_SECONDS)
        finally:
            self._write()

    def _is_due(self) -> bool:
        if self._written is None:
            return self._upstream.value.connected
        return seconds_between(self._written, self._last) >= _WRITE_SECONDS

    def look(self) -> None:
        """One look now."""
        if self._upstream.value.connected:
            self._last = self._now(self._boot_id)
        limit, age = self._config.value.last_known.max_age, self.age
        too_old = limit > 0 and age > limit
        if too_old:
            text = f"the control plane was last heard {_ago(age)} ago, last_known.max_age is {_ago(limit)}"
            self._conditions.set(CONDITION, text)
        else:
            self._conditions.clear(CONDITION)
        self.too_old.set(too_old)

    def _write(self) -> None:
        """A disk that refuses makes the age of the next start too high, the careful side."""
        if self._written == self._last:
            return
        last = {"wall": self._last.wall.isoformat(), "boot_id": self._last.boot_id}
        with contextlib.suppress(MeshagentError):
            state.write_state(self._path, {**last, "boot_seconds": self._last.boot_seconds}, format=_FORMAT)
        self._written = self._last


def _here(boot_id: str) -> Moment:
    return Moment(datetime.now(UTC), boot_id, boot_seconds())


def _ago(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return time_left_text(timedelta(seconds=seconds))
