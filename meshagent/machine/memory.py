"""How much memory this machine has, and how much of it the cgroup of this process may use."""

import re
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")
#: cgroup v1 writes "no limit" as the largest number of pages: 0x7ffffffffffff000.
_NO_LIMIT = 1 << 60


def host_total(proc: Path = _PROC) -> int:
    """Bytes of memory of the machine (proc(5), MemTotal)."""
    found = re.search(r"^MemTotal:\s+(\d+) kB$", (proc / "meminfo").read_text(), re.ASCII | re.MULTILINE)
    return int(found[1]) << 10 if found else 0


def cgroup_limit(proc: Path = _PROC) -> int | None:
    """The smallest memory limit of the cgroups this process is in, in bytes; None where nothing limits it."""
    found = [limit for directory, name in _directories(proc) if (limit := _limit(directory / name)) is not None]
    return min(found, default=None)


def _directories(proc: Path) -> Iterator[tuple[Path, str]]:
    """Every cgroup from ours up to the top of its mount, with the name of the file that limits memory."""
    mounts = _mounts(proc)
    for line in _lines(proc / "self/cgroup"):
        _, controllers, path = line.split(":", 2)
        version = 1 if "memory" in controllers.split(",") else 2 if not controllers else 0
        if version not in mounts:
            continue
        top, root = mounts[version]
        name = "memory.limit_in_bytes" if version == 1 else "memory.max"
        inside = Path(path).relative_to(root) if Path(path).is_relative_to(root) else Path()
        yield top, name
        for parent in (inside, *inside.parents):
            yield top / parent, name


def _mounts(proc: Path) -> dict[int, tuple[Path, str]]:
    """Version -> where it is mounted, and which cgroup is at the top of that mount (proc(5), mountinfo)."""
    found: dict[int, tuple[Path, str]] = {}
    for line in _lines(proc / "self/mountinfo"):
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        if kind[0] == "cgroup2":
            found.setdefault(2, (Path(fields[4]), fields[3]))
        elif kind[0] == "cgroup" and "memory" in kind[2].split(","):
            found.setdefault(1, (Path(fields[4]), fields[3]))
    return found


def _limit(file: Path) -> int | None:
    text = "".join(_lines(file)).strip()
    limit = int(text) if text.isascii() and text.isdigit() else _NO_LIMIT
    return limit if limit < _NO_LIMIT else None


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(errors="replace").splitlines()
    except OSError:
        return []
