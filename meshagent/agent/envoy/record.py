"""What must be remembered about the proxy: which process it is (until reboot), and its shared-memory number (for good).

The record lies where only root can write: the proxy's own directory belongs to the proxy, and whoever writes the record
says whom the agent adopts and ends.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshagent.machine import files, state
from meshagent.machine.services import Handle
from meshagent.model.paths import Paths

#: Envoy multiplies it by ten and keeps the product in 32 bits; 0 is what a stock Envoy on this machine uses.
BASE_IDS = range(1_000_000, 400_000_000)

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - not a temporary file: where Envoy's shm_open puts its segment


@dataclass(frozen=True, slots=True)
class Record:
    """One running proxy."""

    handle: Handle
    version: str
    epoch: int
    base_id: int
    draining: bool = False


class Records:
    """The record below ``paths.run``, the shared-memory number below ``paths.state``."""

    def __init__(self, paths: Paths) -> None:
        self._record = paths.run / "proxy.json"
        self._numbers = paths.state / "proxy.json"
        self._root = str(paths.root.resolve())

    def load(self) -> Record | None:
        """None when there is none, or none that can be used (then nothing can be proven either)."""
        data = state.read_state(self._record).data
        return _record(data) if data is not None else None

    def save(self, record: Record) -> None:
        data = {
            "handle": record.handle.as_dict(),
            "version": record.version,
            "epoch": record.epoch,
            "base_id": record.base_id,
            "draining": record.draining,
        }
        state.write_state(self._record, data)

    def clear(self) -> None:
        files.remove_file(self._record)

    def base_id(self, choose: Callable[[range], int] = random.choice) -> int:
        """This root's number, the same for good. A copied root gets one of its own: the number is bound to the path.

        /dev/shm is shared between network namespaces: two proxies with one number destroy each other's segment.
        """
        data = state.read_state(self._numbers).data or {}
        kept = data.get("base_id")
        if isinstance(kept, int) and kept in BASE_IDS and data.get("root") == self._root:
            return kept
        chosen = choose(BASE_IDS)
        while segment(chosen).exists():
            chosen = choose(BASE_IDS)
        state.write_state(self._numbers, {"base_id": chosen, "root": self._root})
        return chosen

    def forget_base_id(self) -> None:
        """The host leaves: remove the segment and the number."""
        data = state.read_state(self._numbers).data or {}
        if isinstance(data.get("base_id"), int) and data.get("root") == self._root:
            files.remove_file(segment(data["base_id"]))
        files.remove_file(self._numbers)


def segment(base_id: int) -> Path:
    """Envoy's shared-memory file of that number."""
    return SHARED_MEMORY / f"envoy_shared_memory_{base_id * 10}"


def _record(data: dict[str, Any]) -> Record | None:
    handle = Handle.from_dict(data.get("handle") or {})
    version, epoch, base_id = data.get("version"), data.get("epoch"), data.get("base_id")
    if handle is None or not isinstance(version, str) or not isinstance(epoch, int) or not isinstance(base_id, int):
        return None
    return Record(handle, version, epoch, base_id, data.get("draining") is True)
