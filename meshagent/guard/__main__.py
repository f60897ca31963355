"""``python -m meshagent.guard --root DIR``: started detached by the agent, or by meshagent-guard.service."""

import os
import subprocess
import sys
from pathlib import Path

from meshagent.guard.client import GuardClient, command
from meshagent.guard.log import say
from meshagent.guard.loop import GuardStartError, preflight, serve
from meshagent.guard.wire import RequestError
from meshagent.model.errors import MeshagentError
from meshagent.model.paths import Paths

#: It starts within 0.1 s; a machine with many programs waiting gets two hundred times that.
_PREFLIGHT_SECONDS = 20.0
_USAGE = (
    "usage: python -m meshagent.guard [--root DIR] [--without persist,owner] [--preflight | --reload | --follow FD]"
)


def main(arguments: list[str]) -> int:
    """Exit status 0 after a stop, 1 when the guard can't start, 2 on wrong usage.

    ``--preflight`` only tries whether it could; ``--reload`` makes the running guard become this program;
    ``--follow`` is for a guard that another one becomes (succession.py);
    ``--without`` names flags of nftables that are not to be used, as on a kernel that doesn't have them.
    """
    word = arguments[-1] if arguments[-1:] in (["--preflight"], ["--reload"]) else ""
    options = arguments[:-1] if word else arguments
    values = dict(zip(options[::2], options[1::2], strict=False))
    if values.keys() - {"--root", "--follow", "--without"} or len(options) % 2:
        say(_USAGE)
        return 2
    paths = Paths(Path(values["--root"])) if "--root" in values else Paths()
    try:
        if word == "--preflight":
            preflight()
        elif word == "--reload":
            reload(paths)
        else:
            memory = int(values["--follow"]) if "--follow" in values else None
            serve(paths, memory, values.get("--without", "").split(","))
    except (GuardStartError, MeshagentError, RequestError, OSError, ValueError, KeyError) as error:
        say(f"the guard can't {'be reloaded' if word == '--reload' else 'start'}: {error}")
        return 1
    return 0


def reload(paths: Paths) -> None:
    """Let the running guard become the program that is installed now; returns when that answers.

    Raises ``GuardStartError`` when it couldn't start here (then the running one goes on), ``MeshagentError``.
    """
    argv = command(paths.root)
    tried = subprocess.run(
        [*argv, "--preflight"], capture_output=True, check=False, text=True, timeout=_PREFLIGHT_SECONDS
    )
    if tried.returncode:
        raise GuardStartError((tried.stderr.strip().splitlines() or ["it says nothing"])[-1])
    client = GuardClient(paths.guard_socket)
    client.succeed(argv, {name: os.environ[name] for name in ("PYTHONPATH", "PYTHONHOME") if name in os.environ})
    client.state()  # the one before doesn't answer any more
    client.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
