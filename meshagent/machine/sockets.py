"""Who listens and who talks on this host: TCP sockets of this network namespace joined with their processes.

From inet_diag(7) for the sockets (it alone tells whether an IPv6 wildcard also takes IPv4) and /proc/PID/fd for the
owners. Only processes of the same network namespace are looked at; needs root to see other users' processes.
"""

import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Any

from meshagent.machine import process, pyroute
from meshagent.machine.facts import init_system
from meshagent.machine.netlink import off_loop
from meshagent.model.address import IPAddress

#: States of include/net/tcp_states.h as bits of inet_diag's mask.
_ESTABLISHED = 1 << 1
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
    """An established TCP connection; addresses of mapped IPv4 are shown as IPv4."""

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
    owners = _owners(row["idiag_inode"] for row in rows)
    found = [_listener(row, owners) for row in rows]
    return tuple(sorted(found, key=lambda each: (each.port, each.ip.version, each.ip, each.inode)))


def on_ports(ports: Iterable[int], *, udp: bool = False) -> tuple[Listener, ...]:
    """Who listens on these ports: TCP, or with ``udp`` unconnected UDP sockets. Owners are looked up only for them."""
    wanted = frozenset(ports)
    rows = _sockets(_UNCONNECTED, socket.IPPROTO_UDP) if udp else _sockets(_LISTEN)
    rows = [row for row in rows if row["idiag_sport"] in wanted]
    owners = _owners(row["idiag_inode"] for row in rows)
    return tuple(_listener(row, owners) for row in rows)


def connections() -> tuple[Connection, ...]:
    """All established TCP connections of this network namespace."""
    rows = _sockets(_ESTABLISHED)
    owners = _owners(row["idiag_inode"] for row in rows)
    return tuple(_connection(row, owners) for row in rows)


def login_ports(found: Iterable[Listener] | None = None) -> frozenset[int]:
    """The ports on which a login server really listens here, whatever their numbers.

    By name of the owning process; where systemd listens for it (socket activation), by the unit.
    """
    here = listeners() if found is None else found
    ports = {each.port for each in here if any(owner.name in LOGIN_SERVERS for owner in each.owners)}
    if init_system() == "systemd":
        ports |= _ports_of_units(_LOGIN_UNITS)
    return frozenset(ports)


def _ports_of_units(units: Iterable[str]) -> set[int]:
    shown = process.run(["systemctl", "show", "--property=Listen,ActiveState", *units], check=False).stdout
    ports: set[int] = set()
    for unit in shown.split("\n\n"):
        if "ActiveState=active" in unit:
            ports |= {int(port) for port in re.findall(r"^Listen=.*?(\d+) \(Stream\)$", unit, re.ASCII | re.MULTILINE)}
    return ports


def _sockets(states: int, protocol: int = socket.IPPROTO_TCP) -> list[Any]:
    def ask() -> list[Any]:
        with pyroute.diag_socket()() as diag:
            diag.bind()
            families = (socket.AF_INET, socket.AF_INET6)
            return [
                row
                for family in families
                for row in diag.get_sock_stats(family=family, states=states, protocol=protocol)
            ]

    return off_loop(ask)


def _listener(row: Any, owners: Mapping[int, tuple[Owner, ...]]) -> Listener:
    ip = ip_address(row["idiag_src"])
    dual = ip == IPv6Address("::") and not row.get_attr("INET_DIAG_SKV6ONLY")
    inode = row["idiag_inode"]
    return Listener(unmapped(ip), row["idiag_sport"], dual, row["idiag_uid"], inode, owners.get(inode, ()))


def _connection(row: Any, owners: Mapping[int, tuple[Owner, ...]]) -> Connection:
    local, remote = (unmapped(ip_address(row[name])) for name in ("idiag_src", "idiag_dst"))
    inode = row["idiag_inode"]
    return Connection(
        local, row["idiag_sport"], remote, row["idiag_dport"], row["idiag_uid"], inode, owners.get(inode, ())
    )


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
        for inode in wanted & _socket_inodes(pid):
            started = process.start_time(pid) or 0
            found.setdefault(inode, []).append((started, Owner(pid, process.comm(pid), _exe(pid))))
    return {inode: tuple(owner for _, owner in sorted(pairs, key=_age)) for inode, pairs in found.items()}


def _age(pair: tuple[int, Owner]) -> tuple[int, int]:
    return pair[0], pair[1].pid


def _socket_inodes(pid: int) -> set[int]:
    inodes: set[int] = set()
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            match = re.fullmatch(r"socket:\[(\d+)\]", str(entry.readlink()), re.ASCII)
            if match:
                inodes.add(int(match[1]))
    except OSError:
        pass  # it ended, or is not ours to see
    return inodes


def _exe(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/exe").readlink())
    except OSError:
        return ""
