"""Is the person at the keyboard here by a remote login? Then a change of rules could cut them off.

Three signs, because each alone can be lost: an ancestor process is a login server (sudo and su keep it, tmux loses
it), an ancestor's environment holds SSH_CONNECTION (tmux keeps it, su - loses it), the terminal's entry in utmp(5)
names a remote host. Only what concerns this network namespace counts: a session of the machine around a container
or lab host isn't cut by rules in here.
"""

import os
import struct
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from meshagent.machine import process, sockets
from meshagent.machine.sockets import LOGIN_SERVERS, unmapped
from meshagent.model.address import IPAddress, parse_ip

_SESSION_PROCESSES = LOGIN_SERVERS | {"sshd-session", "sshd-auth"}
_UTMP = struct.Struct("<hxxi32s4s32s256s")  # type, pid, line, id, user, host (utmp(5)); records are 384 bytes long
_UTMP_RECORD = 384
_USER_PROCESS = 7
#: Listener, monitor, session process, shell: a login's shell is at most this many steps below a login server.
_GENERATIONS = 4
#: systemd's sockets come and go with listening sockets; this is for what nobody thought of.
_UNITS_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class RemoteLogin:
    """How we know (``via``: ``process``, ``environment`` or ``terminal``), and the session's server port and peer.

    ``server_port`` is 0 and ``peer`` None where only the fact is known.
    """

    via: str
    server_port: int = 0
    peer: IPAddress | None = None
    peer_port: int = 0


def remote_login(own_addresses: Collection[IPAddress], pid: int = 0) -> RemoteLogin | None:
    """The remote login that ``pid`` (0: this process) belongs to; None for a local one.

    ``own_addresses`` are this host's addresses: an SSH_CONNECTION to any other address is a session elsewhere.
    """
    chain = list(ancestors(pid or os.getpid()))
    session = next((found for each in chain if (found := _from_environment(each, own_addresses))), None)
    if any(_is_login_server(each) for each in chain):
        return replace(session, via="process") if session else RemoteLogin("process")
    if session:
        return session
    return RemoteLogin("terminal") if _terminal_is_remote() else None


@dataclass(frozen=True, slots=True)
class Logins:
    """Local ports. ``servers``: a login server listens there now. ``sessions``: a session that is open now came in
    there, whether or not a server still listens."""

    servers: frozenset[int] = frozenset()
    sessions: frozenset[int] = frozenset()


class LoginLook:
    """Looks again and again, cheaply: one small file for each process, more only of login servers and below them.

    systemd is asked for its sockets when the listening ones have changed, at the latest after ``_UNITS_SECONDS``.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        units: Callable[[], frozenset[int]] = sockets.ports_of_login_units,
    ) -> None:
        self._clock, self._ask_units = clock, units
        self._units: frozenset[int] = frozenset()
        self._asked: tuple[frozenset[int], float] | None = None  # the listening sockets then, and when

    def look(self, own_addresses: Collection[IPAddress]) -> Logins:
        """Now. ``own_addresses``: as for ``remote_login``. Raises ``MeshagentError`` where sockets can't be listed."""
        everyone, listening = process.everyone(), sockets.listening_ports()
        servers = [pid for pid, (name, _) in everyone.items() if name in _SESSION_PROCESSES and _is_here(pid)]
        named = [pid for pid in servers if everyone[pid][0] in LOGIN_SERVERS]
        held = {listening[inode] for pid in named for inode in sockets.socket_inodes(pid) if inode in listening}
        sessions = _sessions(servers, {pid: parent for pid, (_, parent) in everyone.items()}, own_addresses)
        return Logins(frozenset(held) | self._of_units(frozenset(listening)), sessions)

    def _of_units(self, listening: frozenset[int]) -> frozenset[int]:
        now = self._clock()
        if self._asked is None or self._asked[0] != listening or now - self._asked[1] >= _UNITS_SECONDS:
            self._units, self._asked = self._ask_units(), (listening, now)
        return self._units


def session_ports(own_addresses: Collection[IPAddress]) -> frozenset[int]:
    """Local ports on which login sessions that are open now came in, whether or not a server still listens there."""
    everyone = process.everyone()
    servers = [pid for pid, (name, _) in everyone.items() if name in _SESSION_PROCESSES and _is_here(pid)]
    return _sessions(servers, {pid: parent for pid, (_, parent) in everyone.items()}, own_addresses)


def _sessions(
    servers: Iterable[int], parents: Mapping[int, int], own_addresses: Collection[IPAddress]
) -> frozenset[int]:
    """The ports of sessions among the descendants of ``servers``."""
    children: dict[int, list[int]] = {}
    for pid, parent in parents.items():
        children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    waiting = list(servers)
    for _ in range(_GENERATIONS):
        waiting = [child for pid in waiting for child in children.get(pid, ())]
        sessions = (_from_environment(pid, own_addresses) for pid in waiting)
        found |= {session.server_port for session in sessions if session}
    return frozenset(found)


def ancestors(pid: int) -> Iterator[int]:
    """``pid``, its parent, and so on up to PID 1."""
    seen: set[int] = set()
    while pid > 0 and pid not in seen:
        seen.add(pid)
        yield pid
        pid = process.parent(pid)


def parse_ssh_connection(text: str) -> tuple[IPAddress, int, IPAddress, int] | None:
    """Client address and port, server address and port of SSH_CONNECTION (ssh(1)); None for anything else."""
    words = text.split()
    if len(words) != 4 or not all(word.isascii() and word.isdigit() for word in (words[1], words[3])):
        return None
    client, server = (parse_ip(word.partition("%")[0]) for word in (words[0], words[2]))
    if client is None or server is None:
        return None
    return unmapped(client), int(words[1]), unmapped(server), int(words[3])


def _is_login_server(pid: int) -> bool:
    return process.comm(pid) in _SESSION_PROCESSES and _is_here(pid)


def _is_here(pid: int) -> bool:
    return process.namespace(pid) == process.namespace()


def _from_environment(pid: int, own_addresses: Collection[IPAddress]) -> RemoteLogin | None:
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    for entry in entries:
        name, _, value = entry.partition(b"=")
        parsed = parse_ssh_connection(value.decode(errors="replace")) if name == b"SSH_CONNECTION" else None
        if parsed and parsed[2] in own_addresses:
            return RemoteLogin("environment", server_port=parsed[3], peer=parsed[0], peer_port=parsed[1])
    return None


def _terminal_is_remote() -> bool:
    for descriptor in (0, 1, 2):
        try:
            line = os.ttyname(descriptor).removeprefix("/dev/")
        except OSError:
            continue
        return line in remote_terminals()
    return False


def remote_terminals(utmp: Path = Path("/run/utmp")) -> frozenset[str]:
    """Terminals (``pts/3``) whose entry in utmp names a remote host."""
    try:
        data = utmp.read_bytes()
    except OSError:
        return frozenset()
    found = set()
    for offset in range(0, len(data) - _UTMP_RECORD + 1, _UTMP_RECORD):
        kind, _, line, _, _, host = _UTMP.unpack_from(data, offset)
        name = host.rstrip(b"\0").decode(errors="replace")
        if kind == _USER_PROCESS and name and not name.startswith((":", "tmux", "mosh")):
            found.add(line.rstrip(b"\0").decode(errors="replace"))
    return frozenset(found)
