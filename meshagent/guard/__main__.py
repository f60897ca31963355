"""``python -m meshagent.guard --root DIR``: started detached by the agent, or by meshagent-guard.service."""

import sys
from pathlib import Path

from meshagent.guard.log import say
from meshagent.guard.loop import GuardStartError, preflight, serve
from meshagent.guard.wire import RequestError
from meshagent.model.errors import MeshagentError
from meshagent.model.paths import Paths

_USAGE = "usage: python -m meshagent.guard [--root DIR] [--without persist,owner] [--preflight | --follow FD]"


def main(arguments: list[str]) -> int:
    """Exit status 0 after a stop, 1 when the guard can't start, 2 on wrong usage.

    ``--preflight`` only tries whether it could; ``--follow`` is for a guard that another one becomes (succession.py);
    ``--without`` names flags of nftables that are not to be used, as on a kernel that doesn't have them.
    """
    values = dict(zip(arguments[::2], arguments[1::2], strict=False))
    only_try = arguments[-1:] == ["--preflight"]
    if values.keys() - {"--root", "--follow", "--without", "--preflight"} or len(arguments) % 2 != only_try:
        say(_USAGE)
        return 2
    try:
        if only_try:
            preflight()
        else:
            memory = int(values["--follow"]) if "--follow" in values else None
            without = values.get("--without", "").split(",")
            serve(Paths(Path(values["--root"])) if "--root" in values else Paths(), memory, without)
    except (GuardStartError, MeshagentError, RequestError, OSError, ValueError, KeyError) as error:
        say(f"the guard can't start: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
