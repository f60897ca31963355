"""Who listens and who talks on this host: TCP sockets of this network namespace joined with their processes.

From inet_diag(7) for the sockets (it alone tells whether an IPv6 wildcard also takes IPv4) and /proc/PID/fd for the
owners. Only processes of the same network namespace are looked at; needs root to see other users' processes.
"""

import contextlib
import os
import re
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from meshagent.machine import dumping, process
from meshagent.machine.facts import init_system
from meshagent.model.address import IPAddress
from meshagent.model.errors import MeshagentError

#: States of include/net/tcp_states.h as bits of inet_diag's mask.
_ESTABLISHED = 1 << 1
#: One end has said all it had to say, the other may go on for hours: FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT.
_HALF_CLOSED = 1 << 4 | 1 << 5 | 1 << 8
_UNCONNECTED = 1 << 7  # UDP: TCP_CLOSE
_LISTEN = 1 << 10

#: Programs that serve logins. OpenSSH's listener keeps the name sshd also where sessions run as sshd-session.
LOGIN_SERVERS = frozenset({"sshd", "dropbear", "tinysshd"})
_LOGIN_UNITS = ("ssh.socket", "sshd.socket", "dropbear.socket")


@dataclass(frozen=True, slots=True)
class Owner:
    """A process that holds a socket: pid, name (at most 15 characters), executable's path (empty when unknown)."""

    pid: int
    name: str
    exe: str


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening TCP socket. ``dual``: an IPv6 wildcard that also takes IPv4. ``owners`` oldest process first."""

    ip: IPAddress
    port: int
    dual: bool
    uid: int
    inode: int
    owners: tuple[Owner, ...]

    @property
    def pid(self) -> int:
        """The oldest owner's pid; 0 when it isn't known."""
        return self.owners[0].pid if self.owners else 0

    @property
    def process(self) -> str:
        return self.owners[0].name if self.owners else ""

    @property
    def exe(self) -> str:
        return self.owners[0].exe if self.owners else ""

    @property
    def wildcard(self) -> bool:
        return self.ip.is_unspecified

    @property
    def families(self) -> frozenset[int]:
        """IP versions whose clients reach it."""
        return frozenset({4, 6}) if self.dual else frozenset({self.ip.version})


@dataclass(frozen=True, slots=True)
class Connection:
    """An open TCP connection; addresses of mapped IPv4 are shown as IPv4."""

    local_ip: IPAddress
    local_port: int
    remote_ip: IPAddress
    remote_port: int
    uid: int
    inode: int
    owners: tuple[Owner, ...]


def listeners() -> tuple[Listener, ...]:
    """All listening TCP sockets of this network namespace, by port, then address."""
    rows = _sockets(_LISTEN)
    owners = _owners(row.inode for row in rows)
    found = [_listener(row, owners) for row in rows]
    return tuple(sorted(found, key=lambda each: (each.port, each.ip.version, each.ip, each.inode)))


def on_ports(ports: Iterable[int], *, udp: bool = False) -> tuple[Listener, ...]:
    """Who listens on these ports: TCP, or with ``udp`` unconnected UDP sockets. Owners are looked up only for them."""
    wanted = frozenset(ports)
    rows = _sockets(_UNCONNECTED, socket.IPPROTO_UDP) if udp else _sockets(_LISTEN)
    rows = [row for row in rows if row.local_port in wanted]
    owners = _owners(row.inode for row in rows)
    return tuple(_listener(row, owners) for row in rows)


def connections() -> tuple[Connection, ...]:
    """All open TCP connections of this network namespace, half-closed ones too, as long as a process has them."""
    rows = [*_sockets(_ESTABLISHED), *(row for row in _sockets(_HALF_CLOSED) if row.inode)]
    owners = _owners(row.inode for row in rows)
    return tuple(_connection(row, owners) for row in rows)


def login_ports(found: Iterable[Listener]) -> frozenset[int]:
    """The ports on which a login server really listens here, whatever their numbers.

    By name of the owning process; where systemd listens for it (socket activation), by the unit.
    """
    ports = {each.port for each in found if any(owner.name in LOGIN_SERVERS for owner in each.owners)}
    return frozenset(ports | ports_of_login_units())


def listening_ports() -> dict[int, int]:
    """Inode -> port of every listening TCP socket, without a look at who owns it."""
    return {row.inode: row.local_port for row in _sockets(_LISTEN)}


def socket_inodes(pid: int) -> Iterator[int]:
    """Of all sockets of a process; none of one that ended or is not ours to see."""
    try:
        with os.scandir(f"/proc/{pid}/fd") as entries:
            descriptors = [entry.path for entry in entries]
    except OSError:
        return
    for descriptor in descriptors:
        with contextlib.suppress(OSError):  # closed meanwhile
            target = os.readlink(descriptor)  # noqa: PTH115 - a Path for each takes three times as long
            if target.startswith("socket:["):
                yield int(target[8:-1])


def ports_of_login_units() -> frozenset[int]:
    """Ports that systemd listens on for a login server; a program is asked, 10 ms. None without systemd."""
    if init_system() != "systemd":
        return frozenset()
    argv = ["systemctl", "show", "--property=Listen,ActiveState", *_LOGIN_UNITS]
    ports: set[int] = set()
    for unit in process.run(argv, check=False).stdout.split("\n\n"):
        if "ActiveState=active" in unit:
            ports |= {int(port) for port in re.findall(r"^Listen=.*?(\d+) \(Stream\)$", unit, re.ASCII | re.MULTILINE)}
    return frozenset(ports)


# include/uapi/linux/sock_diag.h, inet_diag.h
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_SKV6ONLY = 11
#: struct inet_diag_req_v2: family, protocol, extensions, states, and an id that is empty for "all".
_REQUEST = struct.Struct("=BBBxI48x")
#: struct inet_diag_msg: family, both ports and addresses of its id, uid, inode.
_ANSWER = struct.Struct("=Bxxx 2s2s 16s16s 12x 12x II")


@dataclass(frozen=True, slots=True)
class _Row:
    """One socket as the kernel tells it; addresses as they are, mapped ones too."""

    local: IPAddress
    local_port: int
    remote: IPAddress
    remote_port: int
    uid: int
    inode: int
    only6: bool


def _sockets(states: int, protocol: int = socket.IPPROTO_TCP) -> list[_Row]:
    """Raises ``MeshagentError``."""
    requests = (_REQUEST.pack(family, protocol, 0, states) for family in (socket.AF_INET, socket.AF_INET6))
    try:
        bodies = [b for each in requests for b in dumping.dump(_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, each)]
    except OSError as error:
        raise MeshagentError("netlink", f"could not list sockets: {error.strerror or error}") from error
    return list(map(_row, bodies))


def _row(body: bytes) -> _Row:
    family, sport, dport, source, destination, uid, inode = _ANSWER.unpack_from(body)
    only6 = family == socket.AF_INET6 and bool(dumping.number(dumping.attributes(body, _ANSWER.size).get(_SKV6ONLY)))
    ends = (_address(family, source), int.from_bytes(sport), _address(family, destination), int.from_bytes(dport))
    return _Row(*ends, uid, inode, only6)


def _address(family: int, data: bytes) -> IPAddress:
    return IPv4Address(data[:4]) if family == socket.AF_INET else IPv6Address(data)


def _listener(row: _Row, owners: Mapping[int, tuple[Owner, ...]]) -> Listener:
    dual = row.local == IPv6Address("::") and not row.only6
    return Listener(unmapped(row.local), row.local_port, dual, row.uid, row.inode, owners.get(row.inode, ()))


def _connection(row: _Row, owners: Mapping[int, tuple[Owner, ...]]) -> Connection:
    ends = (unmapped(row.local), row.local_port, unmapped(row.remote), row.remote_port)
    return Connection(*ends, row.uid, row.inode, owners.get(row.inode, ()))


def unmapped(ip: IPAddress) -> IPAddress:
    """``::ffff:10.0.0.1`` as the IPv4 address it stands for."""
    return ip.ipv4_mapped or ip if isinstance(ip, IPv6Address) else ip


def _owners(inodes: Iterable[int]) -> dict[int, tuple[Owner, ...]]:
    wanted, own = set(inodes), process.namespace()
    found: dict[int, list[tuple[int, Owner]]] = {}
    if not wanted:
        return {}
    for pid in process.pids():
        if process.namespace(pid) != own:
            continue
        for inode in wanted.intersection(socket_inodes(pid)):
            started = process.start_time(pid) or 0
            found.setdefault(inode, []).append((started, Owner(pid, process.comm(pid), _exe(pid))))
    return {inode: tuple(owner for _, owner in sorted(pairs, key=_age)) for inode, pairs in found.items()}


def _age(pair: tuple[int, Owner]) -> tuple[int, int]:
    return pair[0], pair[1].pid


def _exe(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/exe").readlink())
    except OSError:
        return ""
