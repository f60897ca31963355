"""``python -m meshagent.guard --root DIR``: started detached by the agent, or by meshagent-guard.service."""

import sys
from pathlib import Path

from meshagent.guard.loop import GuardStartError, serve
from meshagent.guard.perform import say
from meshagent.model.errors import MeshagentError
from meshagent.model.paths import Paths


def main(arguments: list[str]) -> int:
    """Exit status 0 after a stop, 1 when the guard can't start, 2 on wrong usage."""
    if len(arguments) not in (0, 2) or (arguments and arguments[0] != "--root"):
        say("usage: python -m meshagent.guard [--root DIR]")
        return 2
    try:
        serve(Paths(Path(arguments[1])) if arguments else Paths())
    except (GuardStartError, MeshagentError, OSError) as error:
        say(f"the guard can't start: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
