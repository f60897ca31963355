"""Unix sockets that appear under their name with the right owner and mode from the first moment on.

A socket is bound under a temporary name with no rights for others, given owner and mode, and renamed into place: there
is no moment in which someone else could connect. A name whose process is gone is taken over; one that answers is not.
"""

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from meshagent.model.errors import MeshagentError

#: umask(2) is per process: while a socket is bound (microseconds) files of other threads are born private.
_PRIVATE = 0o177


@dataclass(frozen=True, slots=True)
class Access:
    """Who may connect: file mode, and owner and group where they are to be changed."""

    mode: int = 0o600
    uid: int | None = None
    gid: int | None = None


def answers(path: Path, timeout: float = 1.0) -> bool:
    """True when a live process listens on the socket at ``path`` (or listens but is too busy to answer)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(timeout)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return path.exists()
    return True


@contextlib.contextmanager
def placed(path: Path, access: Access) -> Iterator[Path]:
    """Gives a temporary path to bind; on leaving, what was bound there gets ``access`` and the name ``path``.

    Raises ``MeshagentError`` (``already-running``) when a live process answers at ``path``.
    """
    refuse_if_live(path)
    temporary = path.with_name(f".{path.stem[:8]}{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    before = os.umask(_PRIVATE)
    try:
        yield temporary
    finally:
        os.umask(before)
    try:
        _grant(temporary, access)
        refuse_if_live(path)
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def refuse_if_live(path: Path) -> None:
    """Raise ``MeshagentError`` (``already-running``) when someone answers at ``path``."""
    if path.exists() and answers(path):
        raise already_running(path)


def already_running(path: Path) -> MeshagentError:
    """What is raised where somebody else serves ``path``."""
    return MeshagentError(
        "already-running",
        f"another process already serves {path}",
        hint="stop it first, or give this one a root of its own with --root",
    )


def _grant(path: Path, access: Access) -> None:
    if access.uid is not None or access.gid is not None:
        os.chown(path, -1 if access.uid is None else access.uid, -1 if access.gid is None else access.gid)
    path.chmod(access.mode)


def listen(path: Path, access: Access, backlog: int = 64) -> socket.socket:
    """A listening, non-blocking socket at ``path``."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with placed(path, access) as temporary:
            listener.bind(str(temporary))
            listener.listen(backlog)
    except BaseException:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def inode(path: Path) -> tuple[int, int] | None:
    """Which socket file this is (device, inode), to remove it later only if it is still ours."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def remove(path: Path, was: tuple[int, int] | None) -> None:
    """Remove ``path`` if it is still the file ``was``."""
    if was is not None and inode(path) == was:
        path.unlink(missing_ok=True)
