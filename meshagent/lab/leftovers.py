"""What proxies of a lab leave outside of it when they are killed instead of told to leave: Envoy's shared memory.

All network namespaces of a machine share /dev/shm, so a segment is told from others by its number only, which each
root wrote down. A root that is a copy of another one keeps that one's number: then the segment isn't its own.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from meshagent.machine import state
from meshagent.machine.segments import segment
from meshagent.model.errors import MeshagentError
from meshagent.model.paths import Paths


def remove_segments(directory: Path) -> None:
    """Remove the segments of all roots right below ``directory``; nothing of theirs may run any more."""
    for root in directory.iterdir():
        if not root.is_dir() or root.is_symlink():
            continue
        with suppress(MeshagentError, OSError):  # as much as can be read, and the others' in any case
            for number in set(_numbers(Paths(root))):
                segment(number).unlink(missing_ok=True)


def _numbers(paths: Paths) -> Iterator[int]:
    """The number the root chose, and those its last proxies ran with (an older epoch may have another one)."""
    chosen = _read(paths.state)
    if chosen.get("root", str(paths.root.resolve())) != str(paths.root.resolve()):
        return
    running = _read(paths.run)
    for found in (chosen, running, running.get("parent")):
        if isinstance(found, Mapping) and isinstance(number := found.get("base_id"), int):
            yield number


def _read(directory: Path) -> Mapping[str, Any]:
    return state.read_state(directory / "proxy.json").data or {}
