"""The file that a backup is: a gzipped tar of the database, the CA's keys, and a manifest with a SHA-256 of each.

Whoever holds it can issue certificates that the mesh trusts. It is read bounded and by name: nothing is unpacked that
the manifest doesn't name, and nothing is believed whose checksum differs.
"""

import hashlib
import io
import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from meshagent.machine.files import explained, sync_dir
from meshagent.model.errors import MeshagentError

FORMAT = 1
DATABASE = "hub.db"
_MANIFEST = "manifest.json"
_MANIFEST_LIMIT = 1 << 20
#: A mesh of 10,000 hosts is some 50 MB.
_MEMBER_LIMIT = 4 << 30
_KEY_NAME = re.compile(r"ca/root-[0-9a-f]{16}\.key")
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup says of itself. ``made_at`` RFC 3339 UTC, ``sha256`` member name -> hex digest."""

    made_at: str
    version: str
    trust_domain: str
    ca_hash: str
    hosts: int
    sha256: Mapping[str, str]
    format: int = FORMAT


def write_archive(path: Path, manifest: Manifest, members: Mapping[str, Path]) -> None:
    """Write a backup to ``path`` (0600), whole or not at all. Raises ``MeshagentError``."""
    new = path.with_name(f".{path.name}.new")
    with explained(f"write {path}", path):
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as opened:
                os.fchmod(opened.fileno(), 0o600)  # a name that was left behind may have had another mode
                with tarfile.open(fileobj=opened, mode="w:gz") as tar:
                    _add(tar, manifest, members)
                opened.flush()
                os.fsync(opened.fileno())
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)
        sync_dir(path.parent)


def _add(tar: tarfile.TarFile, manifest: Manifest, members: Mapping[str, Path]) -> None:
    text = json.dumps(asdict(manifest), indent=1).encode()
    head = tarfile.TarInfo(_MANIFEST)
    head.size, head.mode = len(text), 0o600
    tar.addfile(head, io.BytesIO(text))
    for name, source in members.items():
        with source.open("rb") as opened:
            info = tarfile.TarInfo(name)
            info.size, info.mode = os.fstat(opened.fileno()).st_size, 0o600
            tar.addfile(info, opened)


def is_archive(path: Path) -> bool:
    """True when ``path`` starts as a backup does: what may be overwritten by the next one."""
    try:
        with _reading(path) as tar:
            _manifest(path, tar)
    except MeshagentError:
        return False
    return True


def unpack(path: Path, directory: Path) -> Manifest:
    """Lay the members of the backup down below ``directory`` (0600), each checked against the manifest.

    Raises ``MeshagentError``: ``backup-damaged``, ``backup-too-new``, or what the disk says.
    """
    with _reading(path) as tar:
        manifest = _manifest(path, tar)
        left = dict(manifest.sha256)
        while member := tar.next():
            if member.name not in left or not member.isreg() or member.size > _MEMBER_LIMIT:
                raise damaged(path, f"{member.name[:80]!r} does not belong in it")
            source = tar.extractfile(member)
            assert source is not None
            if _lay_down(source, directory / member.name) != left.pop(member.name):
                raise damaged(path, f"the checksum of {member.name} differs")
        assert tar.fileobj is not None
        tar.fileobj.read(_CHUNK)  # to its end, where gzip's own checksum stands
    if left:
        raise damaged(path, f"it lacks {', '.join(sorted(left))}")
    return manifest


def _lay_down(source: IO[bytes], target: Path) -> str:
    digest = hashlib.sha256()
    target.parent.mkdir(mode=0o700, exist_ok=True)
    with explained(f"write {target}", target):
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as opened:
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
                opened.write(chunk)
            opened.flush()
            os.fsync(opened.fileno())
    return digest.hexdigest()


@contextmanager
def _reading(path: Path) -> Iterator[tarfile.TarFile]:
    """The archive, and every way in which it can be broken as one error."""
    try:
        with tarfile.open(path, "r:gz") as tar:
            yield tar
    except (tarfile.TarError, zlib.error, EOFError, UnicodeError) as error:
        raise damaged(path, str(error) or "it ends too early") from error
    except OSError as error:
        if error.errno is None:  # gzip.BadGzipFile
            raise damaged(path, str(error)) from error
        raise MeshagentError("backup-unreadable", f"{path} can't be read: {error.strerror}") from error


def _manifest(path: Path, tar: tarfile.TarFile) -> Manifest:
    first = tar.next()
    source = tar.extractfile(first) if first and first.name == _MANIFEST and first.size <= _MANIFEST_LIMIT else None
    if source is None:
        raise damaged(path, "it does not start with a manifest")
    try:
        read = json.loads(source.read())
        if read["format"] > FORMAT:
            hint = "restore it with the version that made it, or a newer one"
            raise MeshagentError("backup-too-new", f"{path} has format {read['format']}, known is {FORMAT}", hint=hint)
        manifest = Manifest(**{key: read[key] for key in Manifest.__dataclass_fields__})
        names = set(manifest.sha256)
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(path, "its manifest can't be read") from error
    if DATABASE not in names or not all(_KEY_NAME.fullmatch(name) for name in names - {DATABASE}):
        raise damaged(path, "its manifest names other files than a hub has")
    return manifest


def damaged(path: Path, why: Any) -> MeshagentError:
    """Not a backup, or not whole any more."""
    return MeshagentError(
        "backup-damaged",
        f"{path} is no whole backup of a hub: {why}",
        hint="use another backup; nothing was changed",
    )


def digest_of(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
