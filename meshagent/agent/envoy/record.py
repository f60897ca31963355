"""What must be remembered about the proxy: which process it is (until reboot), and its shared-memory number (for good).

The record lies where only root can write: the proxy's own directory belongs to the proxy, and whoever writes the record
says whom the agent adopts and ends.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from meshagent.machine import files, state
from meshagent.machine.segments import segment
from meshagent.machine.services import Handle
from meshagent.model.paths import Paths

#: Envoy multiplies it by ten into a signed 32-bit number and writes what overflows as 18446744072698330670 into the
#: names of its sockets (1.40.0); 0 is what a stock Envoy on this machine uses.
BASE_IDS = range(1_000_000, 200_000_000)


@dataclass(frozen=True, slots=True)
class Older:
    """The epoch that was relieved by the recorded one, at ``since`` (seconds since 1970, for people) and ``since_boot``
    (seconds after boot: ages go by the clock that nobody sets; 0 in a record of an older version)."""

    handle: Handle
    version: str
    epoch: int
    base_id: int
    since: float
    since_boot: float = 0.0


@dataclass(frozen=True, slots=True)
class Record:
    """The running proxy; ``parent``: the epoch before it, while that one lives for its connections.

    ``coming``: the version of the next epoch, written down before it is started: whoever finds a process of that epoch
    knows what it is although its starter was killed in between.
    """

    handle: Handle
    version: str
    epoch: int
    base_id: int
    draining: bool = False
    parent: Older | None = None
    coming: str = ""

    def epochs(self) -> tuple[tuple[Handle, int], ...]:
        """Every process that the record names, with its epoch."""
        return ((self.handle, self.epoch), *(((self.parent.handle, self.parent.epoch),) if self.parent else ()))

    def handles(self) -> tuple[Handle, ...]:
        return tuple(handle for handle, _ in self.epochs())

    def base_ids(self) -> tuple[int, ...]:
        return tuple({self.base_id, *((self.parent.base_id,) if self.parent else ())})

    def relieved_by(self, handle: Handle, version: str, since: float, since_boot: float = 0.0) -> "Record":
        """The record once the next epoch serves."""
        parent = Older(self.handle, self.version, self.epoch, self.base_id, since, since_boot)
        return Record(handle, version, self.epoch + 1, self.base_id, parent=parent)


class Records:
    """The record below ``paths.run``, the shared-memory number below ``paths.state``."""

    def __init__(self, paths: Paths) -> None:
        self._record = paths.run / "proxy.json"
        self._numbers = paths.state / "proxy.json"
        self._root = str(paths.root.resolve())
        self._known: tuple[object, Record | None] = (None, None)  # what the file was when it was read, and what it said

    def load(self) -> Record | None:
        """None when there is none, or none that can be used (then nothing can be proven either).

        A file that is the same as before is not read again: it is asked for every second.
        """
        signature = self._signature()
        if signature is None or signature != self._known[0]:
            data = state.read_state(self._record).data
            self._known = signature, _record(data) if data is not None else None
        return self._known[1]

    def _signature(self) -> object:
        """Differs after each ``save``, which replaces the file; None when there is none."""
        try:
            found = self._record.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def save(self, record: Record) -> None:
        data = {
            "handle": record.handle.as_dict(),
            "version": record.version,
            "epoch": record.epoch,
            "base_id": record.base_id,
            "draining": record.draining,
            "parent": _older_dict(record.parent) if record.parent else None,
            "coming": record.coming,
        }
        state.write_state(self._record, data, durable=False)
        self._known = (None, None)

    def clear(self) -> None:
        files.remove_file(self._record, durable=False)

    def base_id(self, choose: Callable[[range], int] = random.choice, *, used: int = 0) -> int:
        """This root's number, the same for good. A copied root gets one of its own: the number is bound to the path.
        ``used``: the number of an epoch that lives on beside a proxy that starts anew, which needs another one.

        /dev/shm is shared between network namespaces: two proxies with one number destroy each other's segment.
        """
        data = state.read_state(self._numbers).data or {}
        kept = data.get("base_id")
        if isinstance(kept, int) and kept in BASE_IDS and data.get("root") == self._root and kept != used:
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


def _record(data: dict[str, Any]) -> Record | None:
    handle = Handle.from_dict(data.get("handle") or {})
    version, epoch, base_id = data.get("version"), data.get("epoch"), data.get("base_id")
    if handle is None or not isinstance(version, str) or not isinstance(epoch, int) or not isinstance(base_id, int):
        return None
    coming = data.get("coming")
    return Record(
        handle,
        version,
        epoch,
        base_id,
        data.get("draining") is True,
        _older(data.get("parent")),
        coming if isinstance(coming, str) else "",
    )


def _older_dict(older: Older) -> dict[str, Any]:
    return {
        "handle": older.handle.as_dict(),
        "version": older.version,
        "epoch": older.epoch,
        "base_id": older.base_id,
        "since": older.since,
        "since_boot": older.since_boot,
    }


def _older(data: object) -> Older | None:
    if not isinstance(data, dict):
        return None
    found, since, since_boot = _record(data), data.get("since"), data.get("since_boot", 0.0)
    if found is None or not isinstance(since, int | float) or not isinstance(since_boot, int | float):
        return None
    return Older(found.handle, found.version, found.epoch, found.base_id, float(since), float(since_boot))
