"""The agent, started without the library that reads command lines: a host that boots waits for its Envoy, which the
agent starts, and 25 ms of that and 1 MB for as long as it runs would be the library's.

Only for the plain forms that a service manager uses; every other way to write it goes by the command line as usual, and
means the same.
"""

import os
from pathlib import Path

from meshagent.model.errors import MeshagentError, NotEnrolledError
from meshagent.model.paths import Paths


def root_of(argv: list[str]) -> str | None:
    """What ``--root`` names, "" without one, where the words are a plain ``run``; None for every other command line."""
    match argv:
        case ["run"]:
            return ""
        case ["--root", root, "run"] | ["run", "--root", root] if root and not root.startswith("-"):
            return root
    return None


def paths_below(root: str) -> Paths:
    """The files below a root (``MESHAGENT_ROOT`` when it is empty)."""
    return Paths(Path(root or os.environ.get("MESHAGENT_ROOT", "") or "/").absolute())


def enrolled(paths: Paths) -> bool:
    """True when this root holds an enrolment. Raises ``MeshagentError`` when it may not be looked at."""
    try:
        return paths.enrolment.exists()
    except PermissionError:
        raise MeshagentError(
            "not-root", f"{paths.state} may only be read by root", hint="run the command as root"
        ) from None


def serve(paths: Paths) -> None:
    """Be the agent until told to stop. Raises ``MeshagentError``."""
    if not enrolled(paths):
        raise NotEnrolledError(str(paths.root))
    from meshagent.runtime.memory import stay_lean

    stay_lean()
    import asyncio

    from meshagent.agent.start import run_agent

    asyncio.run(run_agent(paths))


def run(root: str) -> int:
    """``serve``, and the exit code; every error leaves as it does from any other command."""
    try:
        serve(paths_below(root))
    except BaseException as error:
        from meshagent.cli.main import explained

        return explained(error)
    return 0
