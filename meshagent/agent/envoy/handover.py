"""Hot restart: the next epoch takes over listening sockets, the one before lives on for its connections.

Envoy's own way ties the two together for as long as both live: the younger asks the older for numbers and for sockets
and aborts when it gets no answer, so a crash of the older one takes the younger along (measured, 1.40.0), and it ends
the older one after a fixed time, connections or not. Both go away once the younger has said "end": it never asks again.
So that message is led astray: the name it is sent to then belongs to a socket of the older one that nobody reads.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from meshagent.machine import process, services
from meshagent.machine.services import Handle, handle_of
from meshagent.model.paths import Paths

_CONFIG = re.compile(r"proxy-(\d{1,6})\.json", re.ASCII)


def cut(proxy_dir: Path, base_id: int, epoch: int) -> bool:
    """Lead what is still sent to ``epoch`` astray; harmless when done twice. False when there is nothing to do.

    By hard link inside the proxy's own directory: a name of a Unix socket is looked up at each message (unix(7)).
    """
    heard, deaf, new = (f"hot_{role}_{base_id * 10 + epoch}" for role in ("parent", "child", "cut"))
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        directory = os.open(proxy_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(new, dir_fd=directory)
            os.link(deaf, new, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
            os.replace(new, heard, src_dir_fd=directory, dst_dir_fd=directory)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(new, dir_fd=directory)  # rename(2) leaves both names when they are one file already
            return True
        finally:
            os.close(directory)
    return False


def running(paths: Paths, uid: int) -> Iterator[tuple[int, Handle]]:
    """Every proxy of this root that runs, with its epoch, whether or not it is on record.

    Proof beside the name of its configuration, which lies where only root writes: its user and its network namespace.
    """
    own = process.namespace()
    for pid in process.pids():
        epoch = epoch_of(pid, paths.run)
        if epoch is None or process.namespace(pid) != own:
            continue
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}").stat().st_uid == uid and (found := handle_of(pid)) is not None:
                yield epoch, found


def ours(paths: Paths, handle: Handle, epoch: int) -> bool:
    """That very process lives, and was started as this epoch of this root: what a record says alone proves nothing."""
    return services.alive(handle) and epoch_of(handle.pid, paths.run) == epoch


def epoch_of(pid: int, run: Path) -> int | None:
    """The epoch whose configuration below ``run`` the process was started with; None when it is none of ours."""
    words = process.command_line(pid)
    if len(words) < 3 or words[1] != "--config-path":
        return None
    path = Path(words[2])
    match = _CONFIG.fullmatch(path.name)
    return int(match[1]) if match and path.parent == run else None
