"""``services.d/*.yaml`` -> declared services; several documents per file, each file good or refused as a whole."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshagent.config import checks
from meshagent.config.checks import (
    At,
    WrongError,
    choice,
    fields,
    integer,
    labels,
    locality,
    matching,
    port,
    shown,
    whole,
)
from meshagent.config.read import FileTrees, read_here, service_files
from meshagent.config.tree import ConfigError, Node, Problem
from meshagent.model.ports import HBONE, INBOUND, OWN_LOCAL_PORTS
from meshagent.model.service import Check, DeclaredService, ServiceProtocol

_DURATION = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)(ms|s|m|h)", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_LATER_KINDS = ("grpc", "exec", "unit", "heartbeat")
_RESERVED = frozenset({*OWN_LOCAL_PORTS, INBOUND, HBONE})

_path = matching(
    r"/[!-~]{0,1023}", "a path", "write it like /healthz: starts with '/', no spaces, letters outside ASCII as %XX"
)


@dataclass(frozen=True, slots=True)
class ServicesFile:
    """One file of ``services.d``. With ``problems`` it is refused, and ``services`` are those of its last good
    reading (none, if there was none).
    """

    file: Path
    services: tuple[DeclaredService, ...]
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class LoadedServices:
    """All of ``services.d``: what may be announced, and every mistake."""

    services: tuple[DeclaredService, ...]
    errors: tuple[Problem, ...]


def load_services(directory: Path) -> LoadedServices:
    """``services.d`` parsed in this process (command line)."""
    files = check_services(read_here(service_files(directory)))
    return LoadedServices(
        tuple(service for file in files for service in file.services),
        tuple(problem for file in files for problem in file.problems),
    )


LastGood = Mapping[Path, tuple[DeclaredService, ...]]


def check_services(files: Mapping[Path, FileTrees], last_good: LastGood | None = None) -> tuple[ServicesFile, ...]:
    """Every file by itself, then names across files: the file that comes first by name keeps a name."""
    before = last_good or {}
    owner: dict[str, Path] = {}
    result = []
    for path in sorted(files):
        one = _one(path, files[path], before.get(path, ()))
        clashes = tuple(
            Problem(str(path), 0, s.name, f"is already declared in {owner[s.name]}", "rename or remove one of them")
            for s in one.services
            if s.name in owner
        )
        if clashes:
            kept = tuple(service for service in before.get(path, ()) if service.name not in owner)
            one = ServicesFile(path, kept, one.problems + clashes)
        owner.update({s.name: path for s in one.services})
        result.append(one)
    return tuple(result)


def _one(path: Path, trees: FileTrees, before: tuple[DeclaredService, ...]) -> ServicesFile:
    problems = [item for item in trees if isinstance(item, Problem)]
    services: list[DeclaredService] = []
    names: set[str] = set()
    for node in trees:
        if isinstance(node, Problem):
            continue
        try:
            service = check_service(str(path), node)
        except ConfigError as error:
            problems.extend(error.problems)
            continue
        if service.name in names:
            text = "is declared twice in this file"
            problems.append(Problem(str(path), node.line, service.name, text, "rename or remove one of them"))
        names.add(service.name)
        services.append(service)
    return ServicesFile(path, before, tuple(problems)) if problems else ServicesFile(path, tuple(services))


def check_service(file: str, node: Node) -> DeclaredService:
    """One document. Raises ``ConfigError`` with every problem."""
    return whole(file, node, _service)


def _service(at: At) -> DeclaredService:
    known: dict[str, checks.Check[Any]] = {
        "name": checks.label,
        "port": port,
        "target_port": _target_port,
        "protocol": choice(ServiceProtocol),
        "labels": labels,
        "check": _check,
        "weight": integer(1, 10_000),
        "priority": integer(0, 1),
        "site": locality,
    }
    good = fields(at, known)
    present = at.node.value if isinstance(at.node.value, dict) else {}
    for key, remedy in (("name", "write name: orders"), ("port", "write port: 8080")):
        if key not in present or present[key].value is None:
            at.report(f"{key} is missing", remedy)
    if "name" not in good or "port" not in good:
        raise WrongError
    if "target_port" not in present and good["port"] in _RESERVED:
        at.child(present["port"], "port").report(*_taken(good["port"]))
    good.setdefault("target_port", good["port"])
    return DeclaredService(**good)


def _target_port(at: At) -> int:
    number = port(at)
    if number in _RESERVED:
        raise at.wrong(*_taken(number))
    return number


def _taken(number: int) -> tuple[str, str]:
    return f"{number} is a port of the mesh itself", "name the port on which the service's own process listens"


def _check(at: At) -> Check:
    known: dict[str, checks.Check[Any]] = {
        "http": _path,
        "tcp": _true,
        **dict.fromkeys(_LATER_KINDS, _later),
        "interval": duration(0.1, 3600),
        "timeout": duration(0.05, 60),
        "healthy": integer(1, 100),
        "unhealthy": integer(1, 100),
    }
    good = fields(at, known)
    kinds = [kind for kind in ("http", "tcp") if kind in good]
    if len(kinds) > 1:
        raise at.wrong("names more than one kind of check", "keep one of http and tcp")
    path = good.pop("http", "/")
    good.pop("tcp", None)
    return Check(kind=kinds[0] if kinds else "tcp", path=path, **good)


def _true(at: At) -> bool:
    if at.node.value is True:
        return True
    raise at.wrong(f"{shown(at.node.value)} is not true", "write tcp: true, or leave it out")


def _later(at: At) -> None:
    raise at.wrong("this kind of check is not in this version", "use http: /path or tcp: true")


def duration(least: float, most: float) -> checks.Check[float]:
    """Seconds, written like ``10s``, ``500ms``, ``1m`` or as a number of seconds."""

    def checked(at: At) -> float:
        value = at.node.value
        seconds: float | None = None
        if isinstance(value, int | float) and not isinstance(value, bool):
            seconds = float(value)
        elif isinstance(value, str) and (match := _DURATION.fullmatch(value)):
            seconds = float(match[1]) * _SECONDS[match[2]]
        if seconds is None or not least <= seconds <= most:
            bounds = f"from {least:g}s to {most:g}s"
            raise at.wrong(f"{shown(value)} is not a time {bounds}", "write it like 10s, 500ms or 1m")
        return seconds

    return checked
