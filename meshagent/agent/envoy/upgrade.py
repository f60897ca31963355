"""Whether the Envoy on disk is another one than the one that runs.

A package upgrade changes the file, not the process. Nothing is restarted for it by itself: a restart costs memory twice
for a while, and who runs databases through it wants to say when. ``meshagent proxy restart`` takes it in.
"""

from meshagent.agent.envoy.launch import Launcher
from meshagent.machine.services import Handle
from meshagent.model.errors import MeshagentError


def changed_binary(launcher: Launcher, running: Handle) -> str:
    """The version on disk when it is another file than the one that runs; empty when it is the same or unusable.

    Blocks for 0.1 s when the file is new.
    """
    try:
        found = launcher.path().stat()
        if (found.st_dev, found.st_ino) == (running.exe_device, running.exe_inode):
            return ""
        return launcher.binary().version
    except (MeshagentError, OSError):
        return ""  # nothing to restart into
