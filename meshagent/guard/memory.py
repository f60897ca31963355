"""The roll-back file: what makes a dead-man survive the guard's own death and a reboot.

``var/lib/meshagent/rollback.json``, written with nothing but the standard library: temporary file, fsync, rename,
fsync of the directory. A damaged file is set aside and treated as absent: it can only widen what is captured back to
what the agent asks for again.
"""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from meshagent.guard.state import RolledBack, State, Trial, note_from, ruleset_from, ruleset_to
from meshagent.guard.wire import RequestError, take

FORMAT = 1
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """The kernel's random id of this boot; empty where it can't be read."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def save(path: Path, state: State, boot: str) -> None:
    """Write the pending trial and the roll-back of ``state``. Raises ``OSError``."""
    document: dict[str, Any] = {"format": FORMAT, "boot": boot}
    if state.trial:
        trial = state.trial
        document["trial"] = {
            "deadline": trial.deadline,
            "until_at": trial.until_at,
            "note": dict(trial.note),
            "back_to": ruleset_to(trial.back_to),
        }
    if state.rolled_back:
        undone = state.rolled_back
        document["rolled_back"] = {"at": undone.at, "reason": undone.reason, "note": dict(undone.note)}
    _write(path, json.dumps(document).encode())


def load(path: Path) -> tuple[State, str]:
    """The remembered state and the boot it is from; an empty state when there is no usable file."""
    try:
        document = json.loads(path.read_bytes())
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ValueError("unknown format")
        return _state(document), take(document, "boot", str)
    except FileNotFoundError:
        return State(), ""
    except (OSError, ValueError, KeyError, TypeError, RequestError):
        with contextlib.suppress(OSError):
            path.replace(path.with_suffix(".damaged"))
        return State(), ""


def forget(path: Path) -> None:
    """Remove the file; fine when there is none."""
    path.unlink(missing_ok=True)


def _state(document: dict[str, Any]) -> State:
    trial = undone = None
    if found := document.get("trial"):
        trial = Trial(
            float(found["deadline"]), float(found["until_at"]), ruleset_from(found["back_to"]), note_from(found)
        )
    if found := document.get("rolled_back"):
        undone = RolledBack(float(found["at"]), str(found["reason"]), note_from(found))
    return State(trial=trial, rolled_back=undone)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        _write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    temporary.replace(path)
    _sync_directory(path.parent)


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
