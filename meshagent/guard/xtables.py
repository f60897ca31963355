"""What the kernel says of its legacy tables without any program: is an extension there, has a table changed.

getsockopt on a raw socket, as iptables itself does (linux/netfilter_ipv4/ip_tables.h, netfilter_ipv6/ip6_tables.h).
Asking costs microseconds, so it can be done four times a second for as long as the host runs.
"""

import ctypes
import errno
import os
import socket
import struct
from pathlib import Path

_GET_INFO = 64  # IPT_SO_GET_INFO, IP6T_SO_GET_INFO
_REVISION = {4: (66, 67), 6: (68, 69)}  # of a match, of a target
_LEVEL = {4: socket.IPPROTO_IP, 6: socket.IPPROTO_IPV6}
_KIND = {4: socket.AF_INET, 6: socket.AF_INET6}
_INFO_SIZE = 84  # struct ipt_getinfo: name[32], valid_hooks, hook_entry[5], underflow[5], num_entries, size
_NAMES = {4: Path("/proc/self/net/ip_tables_names"), 6: Path("/proc/self/net/ip6_tables_names")}

#: Every match and target that our rules use, with the revision they need.
_MATCHES = (("comment", 0), ("mark", 1), ("owner", 1), ("addrtype", 1), ("conntrack", 1), ("connmark", 1))
_MORE_MATCHES = (("recent", 0), ("multiport", 1), ("tcp", 0), ("udp", 0))
_TARGETS = (("REDIRECT", 0), ("REJECT", 0), ("CT", 2), ("CONNMARK", 1), ("MARK", 2))


class XtablesError(Exception):
    """The kernel has no legacy tables for a family, or lacks something they need."""


class Xtables:
    """One raw socket for a family (4 or 6). Raises ``OSError``, EAFNOSUPPORT where the kernel has no such family."""

    def __init__(self, family: int) -> None:
        self.family = family
        self._socket = socket.socket(_KIND[family], socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW)
        self._libc = ctypes.CDLL(None, use_errno=True)

    def require(self) -> None:
        """Ask for every extension (the kernel loads modules for that); names what is missing."""
        match, target = _REVISION[self.family]
        wanted = [(match, *item) for item in (*_MATCHES, *_MORE_MATCHES)] + [(target, *item) for item in _TARGETS]
        for option, name, revision in wanted:
            why = self._ask(option, bytearray(struct.pack("29sB", name.encode(), revision)))
            if why == errno.ENOPROTOOPT:
                raise XtablesError(f"the kernel has no legacy iptables for IPv{self.family}")
            # IPv4's REDIRECT is revision 0, IPv6's 1: what is there in another revision is there
            if why and (why != errno.EPROTONOSUPPORT or name == "CT"):
                raise XtablesError(f"the kernel lacks what rules of IPv{self.family} need: {name}")

    def tables(self) -> tuple[str, ...]:
        """Names of the tables that exist in this network namespace; asking makes none."""
        return _names(self.family)

    def fingerprint(self) -> bytes:
        """Changes when a rule of any table is added or removed; not when one is replaced by another of equal size."""
        found = b""
        for name in sorted(self.tables()):
            info = bytearray(struct.pack("32s52x", name.encode()))
            self._ask(_GET_INFO, info)
            found += bytes(info)
        return found

    def _ask(self, option: int, value: bytearray) -> int:
        """The error number, 0 for none; ``value`` is question and answer."""
        size = ctypes.c_uint32(len(value))
        buffer = (ctypes.c_char * len(value)).from_buffer(value)
        status = self._libc.getsockopt(self._socket.fileno(), _LEVEL[self.family], option, buffer, ctypes.byref(size))
        return ctypes.get_errno() if status < 0 else 0

    def close(self) -> None:
        self._socket.close()


def in_use() -> bool:
    """Whether legacy tables exist in this network namespace; asks nothing that would make or load something."""
    return any(_names(family) for family in (4, 6))


def _names(family: int) -> tuple[str, ...]:
    try:
        return tuple(_NAMES[family].read_text().split())
    except OSError:
        return ()


def open_families() -> tuple[Xtables, ...]:
    """One for each family the kernel has. Raises ``XtablesError`` when legacy tables can't be used."""
    found: list[Xtables] = []
    try:
        for family in (4, 6):
            try:
                opened = Xtables(family)
            except OSError as error:
                if error.errno == errno.EAFNOSUPPORT:
                    continue
                raise XtablesError(f"no raw socket: {os.strerror(error.errno or 0)}") from error
            found.append(opened)
            opened.require()
    except XtablesError:
        for opened in found:
            opened.close()
        raise
    return tuple(found)
