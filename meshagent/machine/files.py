"""Files that are whole or absent: atomic writes, bounded reads, directories with the right owner.

A write goes to a neighbour of the file, reaches the disk, and takes the file's name in one step (rename(2)), so that
a reader or a crash sees the old or the new content, never a part. Errors of the disk become ``MeshagentError``.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from meshagent.model.errors import MeshagentError

StrPath = str | os.PathLike[str]

#: More than any file we read whole: certificates, configuration, state.
READ_LIMIT = 16 << 20


def write_atomic(
    path: StrPath, data: bytes | str, *, mode: int = 0o600, uid: int = -1, gid: int = -1, durable: bool = True
) -> None:
    """Replace ``path`` with ``data``; ``uid``/``gid`` -1 leave the owner as created.

    ``durable``: it survives a power cut. Below /run nothing has to, and where that is a disk waiting for it takes
    milliseconds in which somebody may wait for a proxy. A reader never meets half a file either way.
    Several writers at once each write whole; the last one stays. Raises ``MeshagentError``.
    """
    path = Path(path)
    content = data.encode() if isinstance(data, str) else data
    new = path.with_name(f".{path.name}.new")
    with explained(f"write {path}", path):
        descriptor = _open_alone(new)
        try:
            os.ftruncate(descriptor, 0)
            _write_all(descriptor, content)
            os.fchown(descriptor, uid, gid)
            os.fchmod(descriptor, mode)
            if durable:
                os.fsync(descriptor)
            new.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        if durable:
            sync_dir(path.parent)


def _open_alone(new: Path) -> int:
    """Open ``new`` under a lock; a name a killed writer left is used again, so leftovers never pile up."""
    while True:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            if os.path.samestat(os.fstat(descriptor), os.lstat(new)):
                return descriptor
        except FileNotFoundError:
            pass  # another writer has just renamed it
        os.close(descriptor)


def _write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def sync_dir(path: StrPath) -> None:
    """Make a rename or removal in this directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_bounded(path: StrPath, limit: int = READ_LIMIT) -> bytes | None:
    """What the file holds; None when there is none.

    Raises ``MeshagentError``, also when it is larger than ``limit`` bytes.
    """
    with explained(f"read {path}", path):
        try:
            with Path(path).open("rb") as opened:
                data = opened.read(limit + 1)
        except FileNotFoundError:
            return None
    if len(data) > limit:
        raise MeshagentError("file-too-big", f"{path} is larger than {limit} bytes")
    return data


def make_dir(path: StrPath, *, mode: int = 0o755, uid: int = -1, gid: int = -1) -> None:
    """Make the directory (parents 0755) and give it exactly this mode and owner; harmless when it is there.

    Raises ``MeshagentError``; a symbolic link in the directory's place is refused.
    """
    path = Path(path)
    with explained(f"make the directory {path}", path):
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=mode)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchown(descriptor, uid, gid)
            os.fchmod(descriptor, mode)
        finally:
            os.close(descriptor)


def wipe(path: StrPath) -> None:
    """Overwrite a file that held a secret and remove it; harmless when there is none.

    Overwriting can't reach copies a journaling or copy-on-write file system or an SSD keeps; it is the best there is.
    """
    path = Path(path)
    with explained(f"wipe {path}", path):
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                _write_all(descriptor, bytes(os.fstat(descriptor).st_size))
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        path.unlink(missing_ok=True)
        sync_dir(path.parent)


def remove_tree(path: StrPath, *, wiped: bool = False) -> None:
    """Remove a directory and everything in it, with ``wiped`` each regular file overwritten first."""
    path = Path(path)
    with explained(f"remove {path}", path):
        if wiped:
            for folder, _, names in os.walk(path):
                for name in names:
                    if Path(folder, name).lstat().st_size and stat.S_ISREG(Path(folder, name).lstat().st_mode):
                        wipe(Path(folder, name))
        while os.path.lexists(path):  # a file that its owner removes at the same moment ends rmtree half-way
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(path)


def remove_file(path: StrPath, *, durable: bool = True) -> None:
    """Remove a file or link, ``durable`` as in ``write_atomic``; harmless when there is none."""
    with explained(f"remove {path}", path):
        try:
            Path(path).unlink()
        except FileNotFoundError:
            return
        if durable:
            sync_dir(Path(path).parent)


@contextlib.contextmanager
def explained(doing: str, path: StrPath) -> Iterator[None]:
    """Turn ``OSError`` inside into a ``MeshagentError`` "could not <doing>: why", with what to do about it."""
    try:
        yield
    except OSError as error:
        code, hint = _REMEDIES.get(error.errno or 0, ("file-failed", ""))
        where = Path(path).parent
        raise MeshagentError(
            code, f"could not {doing}: {error.strerror or error}", hint=hint.format(where=where)
        ) from error


_REMEDIES = {
    errno.ENOSPC: ("disk-full", "free some space on the file system of {where} (df -h {where})"),
    errno.EDQUOT: ("disk-full", "the quota on {where} is used up"),
    errno.EROFS: ("disk-read-only", "{where} is mounted read-only; mount it read-write or use another --root"),
    errno.EACCES: ("no-permission", "run it as root"),
    errno.EPERM: ("no-permission", "run it as root"),
    errno.EIO: ("disk-failed", "the disk of {where} reports errors; see dmesg"),
}
