"""Is the person at the keyboard here by a remote login? Then a change of rules could cut them off.

Three signs, because each alone can be lost: an ancestor process is a login server (sudo and su keep it, tmux loses
it), an ancestor's environment holds SSH_CONNECTION (tmux keeps it, su - loses it), the terminal's entry in utmp(5)
names a remote host. Only what concerns this network namespace counts: a session of the machine around a container
or lab host isn't cut by rules in here.
"""

import os
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from meshagent.machine import process
from meshagent.machine.sockets import LOGIN_SERVERS, unmapped
from meshagent.model.address import IPAddress, parse_ip

_SESSION_PROCESSES = LOGIN_SERVERS | {"sshd-session", "sshd-auth"}
_UTMP = struct.Struct("<hxxi32s4s32s256s")  # type, pid, line, id, user, host (utmp(5)); records are 384 bytes long
_UTMP_RECORD = 384
_USER_PROCESS = 7
#: Listener, monitor, session process, shell: a login's shell is at most this many steps below a login server.
_GENERATIONS = 4


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


def session_ports(own_addresses: Collection[IPAddress]) -> frozenset[int]:
    """Local ports on which login sessions that are open now came in, whether or not a server still listens there."""
    children: dict[int, list[int]] = {}
    for pid in process.pids():
        children.setdefault(process.parent(pid), []).append(pid)
    found: set[int] = set()
    waiting = [pid for pids in children.values() for pid in pids if _is_login_server(pid)]
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
    return process.comm(pid) in _SESSION_PROCESSES and process.namespace(pid) == process.namespace()


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
