"""Kernel settings of this network namespace that capture depends on or makes matter: read, never written."""

from collections.abc import Mapping
from pathlib import Path

_PROC = Path("/proc/sys")
CONNTRACK_COUNT = "net.netfilter.nf_conntrack_count"
CONNTRACK_MAX = "net.netfilter.nf_conntrack_max"

_NAMES = ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding", CONNTRACK_COUNT, CONNTRACK_MAX)
#: In force is the larger of ``all`` and the interface's own (Documentation/networking/ip-sysctl.rst).
_PER_INTERFACE = ("rp_filter", "src_valid_mark", "route_localnet")


def read(names: tuple[str, ...] = _NAMES, proc: Path = _PROC) -> Mapping[str, int]:
    """Name -> value, and for each setting that exists per interface its largest as ``net.ipv4.conf.*.NAME``.

    What this kernel doesn't have (conntrack that isn't loaded) is left out.
    """
    found = {name: _number(proc / name.replace(".", "/")) for name in names}
    if names is _NAMES:
        found |= {f"net.ipv4.conf.*.{name}": _largest(proc, name) for name in _PER_INTERFACE}
    return {name: value for name, value in found.items() if value is not None}


def conntrack(proc: Path = _PROC) -> tuple[int, int] | None:
    """(entries, most entries) of conntrack's table; None where conntrack isn't loaded."""
    found = read((CONNTRACK_COUNT, CONNTRACK_MAX), proc)
    return (found[CONNTRACK_COUNT], found[CONNTRACK_MAX]) if len(found) == 2 else None


def _largest(proc: Path, name: str) -> int | None:
    values = [_number(path) for path in proc.glob(f"net/ipv4/conf/*/{name}") if path.parent.name != "default"]
    return max((value for value in values if value is not None), default=None)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
