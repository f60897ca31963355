"""Files of ``/etc/meshagent`` -> trees: here for a command line, in a short-lived child for the daemon.

Run as a program (``python -m meshagent.config.read FILE...``) it prints one JSON object: path ->
``{"trees": [...]}`` or ``{"problems": [...]}``; a missing file is left out. The child limits itself to 256 MiB and
5 s of CPU before it reads anything. It loads neither asyncio nor anything of the daemon: 45 ms in all.
"""

import json
import os
import stat
import sys
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path

from meshagent.config.tree import ConfigError, Node, Problem, from_json

#: One file: its documents, or why there are none.
FileTrees = tuple[Node, ...] | tuple[Problem, ...]

MAX_FILES = 256
_MEMORY = 256 << 20
_CPU_SECONDS = 5


def service_files(directory: Path) -> tuple[Path, ...]:
    """The files of ``services.d`` that count, sorted by name; hidden ones and editors' leftovers don't."""
    try:
        with os.scandir(directory) as entries:
            names = [e.name for e in entries if e.name.endswith((".yaml", ".yml")) and not e.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return ()
    return tuple(directory / name for name in sorted(names)[:MAX_FILES])


def read_tree(path: Path) -> tuple[Node, ...] | None:
    """The documents of one file, None when there is no such file. Raises ``ConfigError``."""
    from meshagent.config.yamltext import MAX_BYTES, parse_yaml  # 4 MB and 20 ms: only where a file is really parsed

    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO must not block us
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError((Problem(str(path), 0, "", f"can't be read: {error.strerror}"),)) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ConfigError((Problem(str(path), 0, "", "is not an ordinary file"),))
    with os.fdopen(descriptor, "rb") as file:
        return parse_yaml(file.read(MAX_BYTES + 1), str(path))


def read_here(paths: Sequence[Path]) -> dict[Path, FileTrees]:
    """Every existing file of ``paths``, parsed in this process."""
    found: dict[Path, FileTrees] = {}
    for path in paths:
        try:
            trees = read_tree(path)
        except ConfigError as error:
            found[path] = error.problems
        else:
            if trees is not None:
                found[path] = trees
    return found


def encode(files: Mapping[Path, FileTrees]) -> dict[str, object]:
    """The child's JSON object."""
    return {
        str(path): {
            "trees": [item.to_json() for item in items if isinstance(item, Node)],
            "problems": [astuple(item) for item in items if isinstance(item, Problem)],
        }
        for path, items in files.items()
    }


def decode(data: Mapping[str, Mapping[str, list[list[object]]]]) -> dict[Path, FileTrees]:
    """The inverse of ``encode``."""
    found: dict[Path, FileTrees] = {}
    for path, file in data.items():
        problems = tuple(Problem(*fields) for fields in file["problems"])  # type: ignore[arg-type]  # JSON of astuple
        found[Path(path)] = problems or tuple(from_json(tree) for tree in file["trees"])
    return found


def _limit() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    _limit()
    json.dump(encode(read_here([Path(argument) for argument in sys.argv[1:]])), sys.stdout)
