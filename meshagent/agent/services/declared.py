"""Follows ``services.d``: a changed file takes effect without a restart, a bad one is refused alone and named.

The directory is looked at once a second (one stat per file); only when something changed is a child started to parse
all files. What a refused file declared before stays.
"""

import asyncio
from collections.abc import Mapping
from pathlib import Path

import structlog

from meshagent.config.child import read_in_child
from meshagent.config.read import FileTrees, service_files
from meshagent.config.services import ServicesFile, check_services
from meshagent.model.condition import ConditionSink
from meshagent.model.service import DeclaredService
from meshagent.runtime.latest import Latest

log = structlog.get_logger()

_POLL_SECONDS = 1.0
_MOST_NAMED = 5  # problems of one file in a condition's text; the rest is counted


class Declared:
    """``services`` follows the directory; problems are conditions by file name."""

    def __init__(self, directory: Path, conditions: ConditionSink) -> None:
        self._directory = directory
        self._conditions = conditions
        self._last_good: dict[Path, tuple[DeclaredService, ...]] = {}
        self._bad: set[Path] = set()
        self._seen: object = None
        self.services: Latest[tuple[DeclaredService, ...]] = Latest(())
        self.files: Latest[tuple[ServicesFile, ...]] = Latest(())

    async def run(self, interval: float = _POLL_SECONDS) -> None:
        """Follow the directory until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(interval)

    async def refresh(self) -> None:
        """Read the directory if it changed since the last look."""
        paths = service_files(self._directory)
        signature = tuple(_signature(path) for path in paths)
        if signature == self._seen:
            return
        self._take(await read_in_child(paths))
        self._seen = signature  # taken before the reading: a change meanwhile is seen at the next look

    def _take(self, trees: Mapping[Path, FileTrees]) -> None:
        files = check_services(trees, self._last_good)
        self._last_good = {file.file: file.services for file in files}
        self._report(files)
        self.files.set(files)
        services = tuple(service for file in files for service in file.services)
        if services != self.services.value:
            log.info("services declared", services=[service.name for service in services])
        self.services.set(services)

    def _report(self, files: tuple[ServicesFile, ...]) -> None:
        bad = {file.file: file for file in files if file.problems}
        for path in self._bad - set(bad):
            self._conditions.clear("services-file-invalid", path.name)
        for path, file in bad.items():
            self._conditions.set("services-file-invalid", _text(file), path.name)
            log.warning("services file refused", file=str(path), problems=[str(problem) for problem in file.problems])
        self._bad = set(bad)


def _text(file: ServicesFile) -> str:
    more = len(file.problems) - _MOST_NAMED
    shown = [str(problem) for problem in file.problems[:_MOST_NAMED]]
    return "; ".join([*shown, f"and {more} more"] if more > 0 else shown)


def _signature(path: Path) -> object:
    try:
        found = path.stat()
    except OSError:
        return None
    return path, found.st_ino, found.st_mtime_ns, found.st_size, found.st_mode
