"""Who changed rules: the kernel's own announcements on netlink group NFNLGRP_NFTABLES.

A committed transaction is announced message by message, each naming the table it is about in its first attribute, and
ends with NFT_MSG_NEWGEN, which carries the pid and the name of the program that made it (linux/netfilter/nf_tables.h;
kernel 4.12 or newer). So it is known whether a table of ours was touched, and by whom, without listing anything:
listing a table with 5,000 addresses takes 30 ms.
"""

import os
import re
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

_NETLINK_NETFILTER = 12
_NFNLGRP_NFTABLES = 7
_SUBSYS_NFTABLES = 10
_NFT_MSG_NEWGEN = 15
_GEN_PROC_PID = 2
_GEN_PROC_NAME = 3
#: NFTA_TABLE_NAME, NFTA_CHAIN_TABLE, NFTA_RULE_TABLE, NFTA_SET_TABLE, NFTA_SET_ELEM_LIST_TABLE … are all 1.
_ATTRIBUTE_TABLE = 1

_NLMSG = struct.Struct("=IHHII")  # length, type, flags, sequence, port id
_NFGENMSG_SIZE = 4
_ATTRIBUTE = struct.Struct("=HH")
#: Type NFT_MSG_NEWTABLE (0), then flags, sequence, port id and the nfgenmsg, whatever they are.
_NEWTABLE = re.escape(struct.pack("=H", _SUBSYS_NFTABLES << 8)) + b".{14}"
_SO_RCVBUFFORCE = 33

#: Every element is announced (100 bytes each), also those of other programs; an overflow is a reason to look closely,
#: never an error.
_BUFFER = 8 << 20


@dataclass(frozen=True, slots=True)
class Announced:
    """One committed transaction. ``tables``: those of the tables asked for that it touched; ``made``: that it made."""

    pid: int
    name: str
    tables: frozenset[str]
    made: frozenset[str]


class Watch:
    """Hears of every committed nft transaction in this network namespace; never blocks."""

    def __init__(self, *tables: str) -> None:
        self._socket = _open()
        self._announcements = Announcements(*tables)

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> tuple[Announced | None, bool]:
        """What another program did to the tables last, unless we replaced them since; and whether something was missed.

        Reads all there is, so that what others did before our own replacement is not undone twice.
        """
        foreign: Announced | None = None
        try:
            while True:
                for done in self._announcements.feed(self._socket.recv(1 << 18)):
                    if done.pid != os.getpid():
                        foreign = done if done.tables else foreign
                    elif foreign and foreign.tables <= done.made:
                        foreign = None
        except BlockingIOError:
            return foreign, False
        except OSError:  # ENOBUFS: announcements were lost
            self._announcements.lost()
            return None, True

    def close(self) -> None:
        self._socket.close()


def _open() -> socket.socket:
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    opened = socket.socket(socket.AF_NETLINK, kind, _NETLINK_NETFILTER)
    try:
        opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
    except PermissionError:  # root of a user namespace only: net.core.rmem_max is the limit then
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    opened.bind((0, 1 << (_NFNLGRP_NFTABLES - 1)))
    return opened


class Announcements:
    """Datagrams in, transactions out; what a transaction touched is kept until its end is announced.

    The end always comes in a datagram of its own, so all others are only searched: our own replacement of 5,000
    addresses is read in microseconds, not message by message.
    """

    def __init__(self, *tables: str) -> None:
        self._needles = {table: _table_attribute(table) for table in tables}
        self._makes = {table: re.compile(_NEWTABLE + re.escape(found), re.S) for table, found in self._needles.items()}
        self._touched: set[str] = set()
        self._made: set[str] = set()

    def feed(self, data: bytes) -> Iterator[Announced]:
        """The transactions that end in this datagram."""
        first = next(_messages(data), None)
        if first is not None and first[0] == _NFT_MSG_NEWGEN:
            yield from (self._end(data[start:end]) for kind, start, end in _messages(data) if kind == _NFT_MSG_NEWGEN)
            return
        for table, needle in self._needles.items():
            if needle in data:
                self._touched.add(table)
                if self._makes[table].search(data):
                    self._made.add(table)

    def lost(self) -> None:
        """Announcements were lost: what is half told is worth nothing."""
        self._touched.clear()
        self._made.clear()

    def _end(self, body: bytes) -> Announced:
        attributes = dict(_attributes(body))
        pid = int.from_bytes(attributes.get(_GEN_PROC_PID, b""), "big")
        name = attributes.get(_GEN_PROC_NAME, b"").rstrip(b"\0").decode(errors="replace")
        done = Announced(pid, name, frozenset(self._touched), frozenset(self._made))
        self.lost()
        return done


def _table_attribute(table: str) -> bytes:
    value = table.encode() + b"\0"
    padding = b"\0" * (-len(value) % 4)
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), _ATTRIBUTE_TABLE) + value + padding


def _messages(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Kind of each nf_tables message, and where its attributes begin and end."""
    position = 0
    while position + _NLMSG.size <= len(data):
        length, kind, _, _, _ = _NLMSG.unpack_from(data, position)
        if length < _NLMSG.size:
            return
        if kind >> 8 == _SUBSYS_NFTABLES:
            yield kind & 0xFF, position + _NLMSG.size + _NFGENMSG_SIZE, min(position + length, len(data))
        position += (length + 3) & ~3


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, position)
        if length < _ATTRIBUTE.size:
            return
        yield kind & 0x3FFF, data[position + _ATTRIBUTE.size : position + length]
        position += (length + 3) & ~3
