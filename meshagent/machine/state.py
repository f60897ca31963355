"""State files: JSON with a format number and a checksum, so that a torn, damaged or newer file is noticed.

What can't be used is set aside under another name and reported as a value, never raised: a daemon must start with
whatever it finds. Files marked ``precious`` (keys) stay where they are, for a person to decide.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meshagent.machine.files import READ_LIMIT, StrPath, explained, read_bounded, write_atomic


@dataclass(frozen=True, slots=True)
class StateRead:
    """What was found. ``data`` is None when the file is absent or unusable; ``format`` is the writer's.

    ``problem`` says in one line why it is unusable (empty when it is absent or fine), ``set_aside`` where it went.
    """

    data: dict[str, Any] | None = field(default=None, repr=False)
    format: int = 0
    problem: str = ""
    set_aside: Path | None = None


def write_state(
    path: StrPath,
    data: Mapping[str, Any],
    *,
    format: int = 1,
    mode: int = 0o600,
    uid: int = -1,
    gid: int = -1,
    durable: bool = True,
) -> None:
    """Write ``data`` (JSON values) as a state file of this format, as ``files.write_atomic`` does.

    Raises ``MeshagentError``.
    """
    whole = {"format": format, "sha256": _digest(data), "data": data}
    text = json.dumps(whole, indent=1, ensure_ascii=False) + "\n"
    write_atomic(path, text, mode=mode, uid=uid, gid=gid, durable=durable)


def read_state(path: StrPath, *, format: int = 1, precious: bool = False, limit: int = READ_LIMIT) -> StateRead:
    """Read a state file of this format or an older one (the caller migrates by ``StateRead.format``).

    Raises ``MeshagentError`` only when the disk refuses.
    """
    path = Path(path)
    raw = read_bounded(path, limit)
    if raw is None:
        return StateRead()
    found = _parse(path, raw, format)
    if not found.problem or precious:
        return found
    return StateRead(format=found.format, problem=found.problem, set_aside=_set_aside(path))


def _parse(path: Path, raw: bytes, format: int) -> StateRead:
    try:
        whole = json.loads(raw)
        written, digest, data = whole["format"], whole["sha256"], whole["data"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return StateRead(problem=f"{path} is damaged: not a whole state file")
    if not isinstance(written, int) or not isinstance(data, dict) or written < 1:
        return StateRead(problem=f"{path} is damaged: not a state file")
    if written > format:
        return StateRead(format=written, problem=f"{path} was written by a newer version (format {written} > {format})")
    if digest != _digest(data):
        return StateRead(format=written, problem=f"{path} is damaged: its checksum is wrong")
    return StateRead(data, written)


def _digest(data: Mapping[str, Any]) -> str:
    """Over one canonical spelling, so that a file survives being re-indented by a person."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _set_aside(path: Path) -> Path:
    """Rename to ``NAME.set-aside``; only the newest is kept, so that a host that fails in a loop fills no disk."""
    aside = path.with_name(f"{path.name}.set-aside")
    with explained(f"set {path} aside", path):
        path.replace(aside)
    return aside
