"""Finding Envoy on this machine and making sure that it is one we know."""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from meshagent.agent.envoy.epochs import parse_version, require_tested
from meshagent.machine import process, state
from meshagent.model.errors import MeshagentError

#: Where packages put it, and where ``make demo`` unpacks it.
PACKAGED = Path("/opt/meshagent/bin/envoy")
DEFAULT_CACHE = "/var/cache/meshagent-build"

#: ``envoy --version`` maps 100 MB; on a cold disk that takes a while.
VERSION_TIMEOUT = 20.0


@dataclass(frozen=True, slots=True)
class Binary:
    """An Envoy that passed the gate; ``version`` like ``1.40.0``."""

    path: Path
    version: str


#: Device, inode, size, times of its content and of its inode: no write to a file leaves all of them as they were.
_Identity = tuple[int, int, int, int, int]

_versions: dict[_Identity, str] = {}  # asked once per file


def find(configured: Path | None = None) -> Path:
    """The configured one, else ``$MESHAGENT_ENVOY``, the package's, or the newest of the build cache.

    Raises ``MeshagentError`` ``envoy-missing``. A path that was named must exist: nothing else is used instead.
    """
    named = configured or (Path(os.environ["MESHAGENT_ENVOY"]) if os.environ.get("MESHAGENT_ENVOY") else None)
    if named is not None:
        return _require(named)
    if PACKAGED.is_file():
        return PACKAGED
    cache = Path(os.environ.get("MESHAGENT_CACHE") or DEFAULT_CACHE) / "envoy"
    found = sorted(cache.glob("*/envoy"), key=lambda path: _sortable(path.parent.name))
    if not found:
        raise MeshagentError("envoy-missing", f"there is no Envoy at {PACKAGED} or below {cache}", hint=_HINT)
    return _require(found[-1])


def examine(path: Path, *, allowed: str = "", remembered: Path | None = None) -> Binary:
    """Asks the program for its version; raises ``MeshagentError`` unless it is an Envoy of the tested range.

    ``allowed``: one version outside it that is taken all the same. ``remembered``: a state file that keeps the answer
    for the next agent: asking takes 0.1 s, for which a host that boots would wait.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise MeshagentError("envoy-missing", f"{path}: {error.strerror}", hint=_HINT) from error
    key = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    if key not in _versions:
        _versions[key] = _recalled(remembered, key) or _ask(path, key, remembered)
    require_tested(_versions[key], allowed=allowed)
    return Binary(path, _versions[key])


def _ask(path: Path, key: _Identity, remembered: Path | None) -> str:
    output = process.run([path, "--version"], timeout=VERSION_TIMEOUT).stdout
    version = parse_version(output)
    if version is None:
        raise MeshagentError("envoy-unknown", f"{path} is not an Envoy", hint=_HINT)
    if remembered is not None:
        with contextlib.suppress(MeshagentError):  # a full disk: asked again at the next start
            state.write_state(remembered, {"file": list(key), "version": version})
    return version


def _recalled(remembered: Path | None, key: _Identity) -> str:
    """What this very file said to an earlier agent, or ''."""
    data = state.read_state(remembered).data if remembered is not None else None
    version = (data or {}).get("version")
    return version if data and data.get("file") == list(key) and isinstance(version, str) else ""


_HINT = "install the meshagent package, or set MESHAGENT_ENVOY to the binary"


def _require(path: Path) -> Path:
    if not (path.is_file() and os.access(path, os.X_OK)):
        raise MeshagentError("envoy-missing", f"{path} is not a program", hint=_HINT)
    return path


def _sortable(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isascii() and part.isdigit() else -1 for part in version.split("."))
