"""What a host looks like, as text in named sections, and what changed between two looks.

Kernel rules come without handles and counters (they say nothing about what was set up), processes by their command
line. Each section is a list of lines, so that a difference names the line and the place.
"""

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from meshagent.lab import netns
from meshagent.machine import process

if TYPE_CHECKING:
    from meshagent.lab.host import Host

_COUNTERS = re.compile(r"(packets|bytes) \d+")
_SAVE_COUNTERS = re.compile(r"\[\d+:\d+\]")
_EXPIRY = re.compile(r" (?:expires|valid_lft|preferred_lft) \S+")


@dataclass(frozen=True)
class Snapshot:
    """Section name -> its lines."""

    sections: Mapping[str, tuple[str, ...]] = field(repr=False)


def take(host: "Host") -> Snapshot:
    """Look at everything of ``host`` that the product could change."""
    sections: dict[str, Iterable[str]] = {}
    for name, argv, clean in _COMMANDS:
        done = host.run(argv, check=False)
        sections[name] = clean(done.stdout if done.returncode == 0 else f"unreadable: {done.stderr}")
    sections["files below the root"] = _tree(host.root)
    sections["files of /etc"] = _changed_in_etc(host)
    sections["sysctls"] = _sysctls(host)
    sections["processes"] = sorted(filter(None, (_command(pid) for pid in host.processes())))
    return Snapshot({name: tuple(lines) for name, lines in sections.items()})


def diff(before: Snapshot, after: Snapshot) -> list[str]:
    """One line per difference: ``section: - gone`` or ``section: + new``; empty when the host is as it was."""
    found = []
    for section in sorted({*before.sections, *after.sections}):
        old, new = before.sections.get(section, ()), after.sections.get(section, ())
        if old == new:
            continue
        changes = [f"{section}: - {line}" for line in old if line not in new]
        changes += [f"{section}: + {line}" for line in new if line not in old]
        found += changes or [f"{section}: the order of lines, or how often they occur, changed"]
    return found


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def _rules(text: str) -> list[str]:
    return [_COUNTERS.sub(r"\1 N", line) for line in _lines(text)]


def _saved(text: str) -> list[str]:
    return [_SAVE_COUNTERS.sub("", line).rstrip() for line in _lines(text) if not line.startswith("#")]


def _timeless(text: str) -> list[str]:
    return [_EXPIRY.sub("", line) for line in _lines(text)]


_Clean = Callable[[str], list[str]]
_COMMANDS: tuple[tuple[str, list[str], _Clean], ...] = (
    ("nftables", ["nft", "--stateless", "list", "ruleset"], _rules),
    ("iptables", ["iptables-legacy-save"], _saved),
    ("ip6tables", ["ip6tables-legacy-save"], _saved),
    ("rules of IPv4", ["ip", "-4", "-N", "rule", "show"], _lines),
    ("rules of IPv6", ["ip", "-6", "-N", "rule", "show"], _lines),
    ("routes of IPv4", ["ip", "-4", "-N", "route", "show", "table", "all"], _timeless),
    ("routes of IPv6", ["ip", "-6", "-N", "route", "show", "table", "all"], _timeless),
    ("addresses", ["ip", "-o", "address", "show"], _timeless),
)


#: useradd(8) and userdel(8) themselves keep a lock and the second newest version of what they change.
_BACKUP = re.compile(r"(\.pwd\.lock|(passwd|shadow|group|gshadow|subuid|subgid)-) ")


def _tree(top: Path) -> list[str]:
    """Every file below ``top``: path, type and mode, owner, and a digest of what it holds."""
    found = []
    for folder, names, files in os.walk(top):
        for name in [*names, *files]:
            path = Path(folder, name)
            try:
                found.append(_describe(path, path.relative_to(top)))
            except FileNotFoundError:
                continue  # gone meanwhile
    return sorted(found)


def _changed_in_etc(host: "Host") -> list[str]:
    """Files that differ from this machine's /etc; written back as they were, they no longer count."""
    upper, lower = host.path(netns.ETC_UPPER), Path("/etc")
    return [line for line in _tree(upper) if not _BACKUP.match(line) and line not in _same(lower, line)]


def _same(lower: Path, line: str) -> list[str]:
    name = Path(line.partition(" ")[0])
    try:
        return [_describe(lower / name, name)]
    except FileNotFoundError:
        return []


def _describe(path: Path, name: Path) -> str:
    seen = path.lstat()
    what = ""
    if stat.S_ISREG(seen.st_mode):
        what = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    elif stat.S_ISLNK(seen.st_mode):
        what = f"-> {path.readlink()}"
    return f"{name} {stat.filemode(seen.st_mode)} {seen.st_uid}:{seen.st_gid} {what}".rstrip()


#: Counts and sizes the kernel itself moves, and those that are no setting of a host.
_MOVING = re.compile(r"nf_conntrack_count|/route/flush|stable_secret|nf_conntrack_(buckets|max)|/unix/")


def _sysctls(host: "Host") -> list[str]:
    """Every readable net.* setting of the host's network namespace."""
    listing = host.run(["grep", "-rs", "", "/proc/sys/net"], check=False).stdout
    return sorted(line.removeprefix("/proc/sys/") for line in _lines(listing) if not _MOVING.search(line))


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    except OSError:
        return ""
    return process.show([word.decode(errors="replace") for word in words])
