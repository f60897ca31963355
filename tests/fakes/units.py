"""Control groups as systemd makes them for units, real ones in this machine's v2 tree, removed afterwards."""

import contextlib
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from meshagent.machine import cgroups


@dataclass
class Units:
    """``slice`` holds the units; ``start`` makes one's group, ``stop`` removes it. Names are this run's own."""

    slice: str
    root: Path
    _made: list[Path] = field(default_factory=list)

    def name(self, unit: str) -> str:
        """``web.service`` -> a name that no other test has."""
        stem, _, kind = unit.rpartition(".")
        return f"{stem}-{self.slice.removesuffix('.slice')}.{kind}"

    def path(self, unit: str) -> Path:
        return self.root / self.slice / self.name(unit)

    def start(self, unit: str, below: str = "") -> Path:
        """``below``: a group inside, like those of a container's own systemd."""
        path = self.path(unit) / below
        for directory in reversed([p for p in (path, *path.parents) if p.is_relative_to(self.root / self.slice)]):
            if not directory.exists():
                directory.mkdir()
                self._made.append(directory)
        return path

    def stop(self, unit: str) -> None:
        """Waits for the last process to be gone, as systemd does."""
        for directory in [p for p in reversed(self._made) if p.is_relative_to(self.path(unit))]:
            _remove(directory)
            self._made.remove(directory)

    def close(self) -> None:
        for directory in reversed(self._made):
            with contextlib.suppress(FileNotFoundError):
                _remove(directory)


def _remove(directory: Path) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            directory.rmdir()
            return
        except OSError as error:
            if isinstance(error, FileNotFoundError) or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


@contextlib.contextmanager
def units() -> Iterator[Units]:
    root = cgroups.tree()
    assert root is not None, "tests of units need a cgroup v2 tree below /sys/fs/cgroup"
    made = Units(f"ma{secrets.token_hex(4)}.slice", root)
    try:
        yield made
    finally:
        made.close()
