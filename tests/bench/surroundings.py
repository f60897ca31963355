"""What a number means nothing without: machine, kernel, versions, what else was running."""

import os
import platform
import re
from datetime import UTC, datetime
from pathlib import Path

from meshagent import __version__
from meshagent.machine import process
from tests.bench.stage import envoy_binary

_VERSIONS = {
    "nginx": ["nginx", "-v"],
    "Redis": ["redis-server", "--version"],
    "wrk": ["wrk", "-v"],
    "redis-benchmark": ["redis-benchmark", "--version"],
    "iperf3": ["iperf3", "--version"],
    "dnsperf": ["dnsperf", "-h"],
    "nft": ["nft", "--version"],
}
_NUMBER = re.compile(r"\d+\.\d+(\.\d+)?")


def look() -> dict[str, str]:
    """Name -> value, for the page and for the raw numbers."""
    return {
        "when": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cpu": _cpu(),
        "cores": str(len(os.sched_getaffinity(0))),
        "load before": f"{os.getloadavg()[0]:.2f}",
        "kernel": platform.release(),
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", ""),
        "meshagent": __version__,
        "Python": platform.python_version(),
        "Envoy": _version([str(envoy_binary()), "--version"]),
        **{name: _version(argv) for name, argv in _VERSIONS.items()},
    }


def told(found: dict[str, str], effort: str) -> list[str]:
    """Sentences for the page."""
    programs = ("meshagent", "Envoy", "Python", *_VERSIONS)
    return [
        f"{found['when']}, {found['cores']} x {found['cpu']}, Linux {found['kernel']}, {found['system']}; "
        f"load average {found['load before']} before it began.",
        ", ".join(f"{name} {found[name]}" for name in programs) + ".",
        effort,
    ]


def _cpu() -> str:
    named = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return named[1] if named else platform.machine()


def _version(argv: list[str]) -> str:
    done = process.run(argv, check=False)
    found = _NUMBER.search(done.stdout + done.stderr)
    return found[0] if found else "?"
