"""The configuration files in which services here say who may come in, found from the process that listens.

Files are read as the process sees them (``/proc/PID/root``), bounded in size and number; the unreadable is left out.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from meshagent.machine.files import read_bounded
from meshagent.machine.sockets import Listener
from meshagent.model.errors import MeshagentError

_FILE_LIMIT = 256 << 10
_MOST_FILES = 60


@dataclass(frozen=True, slots=True)
class AccessFiles:
    """``program`` is one of ``postgresql``, ``mariadb``, ``redis``, ``postfix``, ``apache``, ``nginx``; ``files`` are
    (path, text). ``loopback_only``: it listens nowhere else."""

    program: str
    port: int
    loopback_only: bool
    files: tuple[tuple[str, str], ...]


def read(listening: Iterable[Listener]) -> tuple[AccessFiles, ...]:
    """One entry for each port of a program we know."""
    ports: dict[tuple[str, int], list[Listener]] = {}
    for listener in listening:
        program = _program(listener)
        if program:
            ports.setdefault((program, listener.port), []).append(listener)
    return tuple(_read(program, port, found) for (program, port), found in sorted(ports.items()))


def _read(program: str, port: int, found: list[Listener]) -> AccessFiles:
    pid = found[0].pid
    root, words = Path(f"/proc/{pid}/root"), _command(pid)
    texts = []
    for path in list(_FILES[program](root, words))[:_MOST_FILES]:
        text = _text(root / str(path).lstrip("/"))
        if text:
            texts.append((str(path), text))
    return AccessFiles(program, port, all(each.ip.is_loopback for each in found), tuple(texts))


def _program(listener: Listener) -> str:
    name, exe = listener.process, Path(listener.exe).name
    for program, names in _NAMES.items():
        if exe in names or name in names:
            return program
    return "postfix" if name == "master" and "postfix" in listener.exe else ""


_NAMES: Mapping[str, tuple[str, ...]] = {
    "postgresql": ("postgres", "postmaster"),
    "mariadb": ("mariadbd", "mysqld"),
    "redis": ("redis-server", "redis-check-rdb", "valkey-server"),
    "apache": ("apache2", "httpd"),
    "nginx": ("nginx",),
}


def _postgresql(root: Path, words: list[str]) -> Iterator[Path]:
    """``hba_file`` of postgresql.conf, by default beside the data."""
    data = Path(_after(words, "-D") or "/var/lib/postgresql")
    config = Path(_option(words, "config_file") or data / "postgresql.conf")
    named = _setting(_text(root / str(config).lstrip("/")), "hba_file")
    yield Path(named) if named and named.startswith("/") else data / "pg_hba.conf"


def _redis(root: Path, words: list[str]) -> Iterator[Path]:
    """Redis writes over its own command line, so the packages' places are looked at, too."""
    for word in words:
        yield from [Path(word)] if word.endswith(".conf") and word.startswith("/") else []
    yield from (Path("/etc/redis/redis.conf"), Path("/etc/redis.conf"), Path("/etc/valkey/valkey.conf"))


def _postfix(_root: Path, words: list[str]) -> Iterator[Path]:
    yield Path(_after(words, "-c") or "/etc/postfix") / "main.cf"


def _apache(root: Path, words: list[str]) -> Iterator[Path]:
    yield from [Path(named)] if (named := _after(words, "-f")) and named.startswith("/") else []
    for pattern in ("apache2/apache2.conf", "apache2/*-enabled/*.conf", "httpd/conf/*.conf", "httpd/conf.d/*.conf"):
        yield from _below(root, pattern)


def _nginx(root: Path, words: list[str]) -> Iterator[Path]:
    yield from [Path(named)] if (named := _after(words, "-c")) and named.startswith("/") else []
    for pattern in ("nginx/nginx.conf", "nginx/conf.d/*.conf", "nginx/sites-enabled/*"):
        yield from _below(root, pattern)


def _mariadb(_root: Path, _words: list[str]) -> Iterator[Path]:
    """Grants are in tables, which only the server reads."""
    yield from ()


_FILES: Mapping[str, Callable[[Path, list[str]], Iterator[Path]]] = {
    "postgresql": _postgresql,
    "mariadb": _mariadb,
    "redis": _redis,
    "postfix": _postfix,
    "apache": _apache,
    "nginx": _nginx,
}


def _below(root: Path, pattern: str) -> Iterator[Path]:
    yield from (Path("/") / path.relative_to(root) for path in sorted((root / "etc").glob(pattern)))


def _after(words: list[str], option: str) -> str:
    """The value of ``-D value`` or ``-Dvalue``."""
    for place, word in enumerate(words):
        if word == option and place + 1 < len(words):
            return words[place + 1]
        if word.startswith(option) and len(word) > len(option):
            return word[len(option) :]
    return ""


def _option(words: list[str], name: str) -> str:
    """The value of ``-c name=value`` or ``--name=value``."""
    return next((word.partition("=")[2] for word in words if re.match(rf"(--)?{name}=", word)), "")


def _setting(text: str, name: str) -> str:
    match = re.search(rf"^\s*{name}\s*=?\s*'?([^'#\n]+)", text, re.MULTILINE)
    return match[1].strip() if match else ""


def _command(pid: int) -> list[str]:
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return [word for word in raw.decode(errors="replace").split("\0") if word]


def _text(path: Path) -> str:
    try:
        raw = read_bounded(path, _FILE_LIMIT)
    except (MeshagentError, OSError):
        return ""
    return (raw or b"").decode(errors="replace")
