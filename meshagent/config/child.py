"""Parsing for the daemon: in a short-lived child, whose memory and time are limited and come back to the machine."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from meshagent.config.load import check_agent_config
from meshagent.config.read import FileTrees, decode
from meshagent.config.settings import AgentConfig
from meshagent.config.tree import Problem
from meshagent.machine.process import ProgramError, run_async


async def load_agent_config(path: Path) -> AgentConfig:
    """``agent.yaml``; a missing file is the defaults. Raises ``ConfigError`` with every problem."""
    files = await read_in_child([path])
    return AgentConfig() if path not in files else check_agent_config(str(path), files[path])


async def read_in_child(paths: Sequence[Path], timeout: float = 15.0) -> dict[Path, FileTrees]:
    """``read_here`` in a child process; without an existing file none is started.

    A child that fails (limits, time) makes a problem of every file: none of them can be trusted.
    """
    present = [path for path in paths if path.exists()]
    if not present:
        return {}
    argv = [sys.executable, "-m", "meshagent.config.read", *map(str, present)]
    try:
        done = await run_async(argv, timeout=timeout)
    except ProgramError:
        text = "could not be parsed within the limits of time and memory"
        return {path: (Problem(str(path), 0, "", text, "make the file smaller"),) for path in present}
    return decode(json.loads(done.stdout))
