"""Follows ``agent.yaml`` while the daemon runs: a good edit is published, a bad one is named and changes nothing."""

import asyncio
from pathlib import Path

from meshagent.config.child import load_agent_config
from meshagent.config.settings import AgentConfig
from meshagent.config.tree import ConfigError
from meshagent.model.condition import ConditionSink
from meshagent.runtime.latest import Latest

_POLL_SECONDS = 1.0
_MOST_NAMED = 5  # problems in a condition's text; the rest is counted


class FollowedConfig:
    """``config`` follows the file; a file that goes away means the defaults again."""

    def __init__(self, path: Path, conditions: ConditionSink) -> None:
        self._path = path
        self._conditions = conditions
        self._seen: object = None
        self.config: Latest[AgentConfig] = Latest(AgentConfig())

    async def start(self) -> AgentConfig:
        """The first reading. Raises ``ConfigError``: a daemon does not start on a file it can't read."""
        self._seen = self._signature()
        self.config.set(await load_agent_config(self._path))
        return self.config.value

    async def run(self, interval: float = _POLL_SECONDS) -> None:
        """Follow the file until cancelled."""
        while True:
            await asyncio.sleep(interval)
            await self.refresh()

    async def refresh(self) -> None:
        """Read the file again if it changed since the last look."""
        signature = self._signature()
        if signature == self._seen:
            return
        try:
            config = await load_agent_config(self._path)
        except ConfigError as error:
            more = len(error.problems) - _MOST_NAMED
            told = [str(problem) for problem in error.problems[:_MOST_NAMED]] + [f"and {more} more"] * (more > 0)
            self._conditions.set("config-file-invalid", "; ".join(told))
        else:
            self._conditions.clear("config-file-invalid")
            self.config.set(config)
        self._seen = signature  # taken before the reading: a change meanwhile is seen at the next look

    def _signature(self) -> object:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size, found.st_mode
