"""The demo as a process of its own, and what it may leave behind."""

import subprocess
import sys
from pathlib import Path

ARGV = [sys.executable, "-m", "meshagent.cli.entry", "demo"]


def start(*options: str) -> "subprocess.Popen[str]":
    """``meshagent demo`` in a session of its own, its output on pipes."""
    return subprocess.Popen(
        [*ARGV, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def labs() -> set[str]:
    """Names of the labs that are there."""
    return {path.name for path in Path("/run").glob("ma-??????")}


def processes(lab: str) -> list[str]:
    """Command lines of living processes that name the lab: every program of a lab host has a path of it somewhere."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes() + (path / "environ").read_bytes()
        except OSError:
            continue
        if lab.encode() in words:
            found.append(words.partition(b"\0")[0].decode(errors="replace"))
    return found


def lab_of(pid: int) -> str:
    """The lab that a process owns, as its state file says; empty while there is none."""
    for path in Path("/run").glob("ma-??????/lab.json"):
        try:
            if f'"pid": {pid},' in path.read_text():
                return path.parent.name
        except OSError:
            continue
    return ""
